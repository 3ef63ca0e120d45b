"""The science: stimuli, models, operators, ridge, scores, the plan, the report and the demo data."""
