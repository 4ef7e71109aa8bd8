"""`python -m pinmem`, and so `torchrun -m pinmem`: the command."""
from .cli import main

raise SystemExit(main())
