"""transformers without its own progress bars and advice: a stage says itself what it does."""

import os
import warnings

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers.utils import logging

logging.set_verbosity_error()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft asks it in the old way
logging.disable_progress_bar()
