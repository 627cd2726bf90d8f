import sys
from pathlib import Path

# Spawned workers are given sys.path, so a task module found here is found there.
sys.path.insert(0, str(Path(__file__).parent))
