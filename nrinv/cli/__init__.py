"""The command line `nrinv`: its commands, and the program that holds them."""

import os

# Set before torch is imported: small networks run many times slower when every library starts its own threads.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))

from .about import demo, info, samples
from .draw import edit, generate, invert
from .options import Method, Model, Noise, Order, SolverName
from .several import interpolate, rare
from .shell import app

__all__ = [
    "Method",
    "Model",
    "Noise",
    "Order",
    "SolverName",
    "app",
    "demo",
    "edit",
    "generate",
    "info",
    "interpolate",
    "invert",
    "rare",
    "samples",
]
