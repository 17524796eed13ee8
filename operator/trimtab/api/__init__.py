"""The resource `LLMDeployment` (`trimtab.dev/v1alpha1`): what users state, what Trimtab reports.

Defined once as pydantic models; the CustomResourceDefinition in `crds/` is generated from them
(`trimtab.api.crd`), so that the API server, the operator and `trimtab plan` refuse the same input.
"""

GROUP = "trimtab.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
