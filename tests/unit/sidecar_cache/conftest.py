import sys
from pathlib import Path

# The oracle and the corpus lie beside their tests, which are imported one by one.
sys.path.insert(0, str(Path(__file__).parent))
