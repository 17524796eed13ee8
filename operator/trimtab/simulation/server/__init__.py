"""An HTTP server that speaks TGI 3.3.7's API and metrics, driven by the engine model.

`python -m trimtab.simulation.server` takes text-generation-launcher's arguments and variables. Its own variables:

- TRIMTAB_SIM_GPU: product of the catalogue that it pretends to run on (default A100-80GB);
- TRIMTAB_SIM_BOOT_SECONDS: time until the port opens (default: estimated from the weights);
- TRIMTAB_SIM_MODEL: model of the catalogue whose facts hold for an unlisted --model-id or a folder;
- TRIMTAB_SIM_CRASH_AFTER_PASSES: the forward pass of this number fails as for lack of memory, and the process ends;
- TRIMTAB_SIM_EOS=1: answers may end early, at a length drawn from the request (default: they have max_new_tokens).
"""
