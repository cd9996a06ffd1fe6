__version__ = "0.2.0"

import warnings

# fastai calls it when it is imported, in every process; nobody who reads this can change that
warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated', category=FutureWarning)
