"""Settings that must be made before anything imports PyTorch."""

import os

# MKL's Fourier transforms round differently on processors of Intel and of AMD. The official outputs in
# data/parity came from the path that all processors have. On Intel's own the official code differs from
# itself by up to 1e-4 in quiet bins of a spectrogram, ten times what the tests allow ours.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
