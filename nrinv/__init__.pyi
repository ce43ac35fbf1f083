from ._C import Inversion as Inversion
from ._C import Request as Request
from ._C import Result as Result
from ._C import Sampler as Sampler
from ._C import reasons as reasons
from .autoencoder import decode as decode
from .autoencoder import encode as encode
from .inversion import InversionOutput as InversionOutput
from .inversion import load as load
from .models import demo_images as demo_images
from .models import demo_pipeline as demo_pipeline
from .models import scorer as scorer
from .path import centroid as centroid
from .path import interpolate as interpolate
from .path import path_length as path_length
from .pipeline import CorrectionOutput as CorrectionOutput
from .pipeline import correct as correct
from .pipeline import generate as generate
from .pipeline import invert as invert
from .plots import sheet as sheet
from .rare import RareOutput as RareOutput
from .rare import rare as rare
from .sampler import read_sampler as read_sampler
from .solver import Solver as Solver
from .solver import natural_guess as natural_guess

__version__: str
