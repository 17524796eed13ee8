"""An HTTP server that speaks vLLM 0.11's API and metrics, driven by a model of its V1 scheduler.

`python -m trimtab.simulation.vllm` takes the arguments of `vllm serve`. Its own variables are those of
`trimtab.simulation.server` (TRIMTAB_SIM_GPU, _BOOT_SECONDS, _MODEL and _EOS); docs/simulator.md tells what is modelled.
"""
