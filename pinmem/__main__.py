"""`python -m pinmem`, and so `torchrun -m pinmem`: the command."""
import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # before torch is imported: what fails is said in one line

from .cli import main

raise SystemExit(main())
