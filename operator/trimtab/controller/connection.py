"""Where the API server is and who we are there, once for our client and for Kopf.

The operator uses the pod's service account, or the kubeconfig that it was given by name. It never falls back to the
ambient kubeconfig of a workstation.
"""

from pathlib import Path

import kopf
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config


async def load_configuration(kubeconfig: Path | None, context: str | None = None) -> Configuration:
    """Connection and credentials. Raises the client library's ConfigException when there are none."""
    configuration = Configuration()
    if kubeconfig is None:
        load_incluster_config(client_configuration=configuration)
    else:
        await load_kube_config(
            config_file=str(kubeconfig), context=context, client_configuration=configuration, persist_config=False
        )
    return configuration


async def kopf_connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """The same for Kopf, which calls this again when its token has expired."""
    setting = (await configuration.auth_settings()).get("BearerToken") or {}
    scheme, _, token = str(setting.get("value") or "").partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        ca_data=configuration.ca_cert_data,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme=scheme if token else None,
        token=token or None,
    )
