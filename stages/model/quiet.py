"""transformers without its own progress bars and advice: a stage says itself what it does."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
