"""The demo study: movies, simulated BOLD of known origin, and the study file that names them."""
