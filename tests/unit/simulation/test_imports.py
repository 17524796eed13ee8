import subprocess
import sys

ELSEWHERE = "numpy kopf kubernetes rich huggingface_hub tokenizers redis prometheus_api_client"


def test_the_server_needs_only_its_own_extra():
    """Its image carries the base dependencies and the `simulator` extra, nothing else."""
    program = (
        f"import sys\nfor name in {ELSEWHERE!r}.split():\n    sys.modules[name] = None\n"
        "import trimtab.simulation.server.__main__\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
