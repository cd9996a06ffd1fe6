__version__ = "0.1.0"

import warnings

# fastai and fvcore call it when they are imported, in every process; nobody who reads this can change that
warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated', category=FutureWarning)
