"""Keys, certificates, tokens and kubeconfigs of a control plane."""

import json
import secrets
from pathlib import Path

from devcluster.paths import API_SERVICE_ADDRESS, CONTEXT
from devcluster.shell import find_tool, run

# Who may do what is Kubernetes' own default RBAC for these names.
IDENTITIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "admin": ("trimtab-admin", ("system:masters",)),
    "controller-manager": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
    "proxy": ("system:kube-proxy", ()),
    "kubelet": ("system:node:trimtab-node", ("system:nodes",)),
}
_DAYS = "3650"


def create(folder: Path, address: str) -> None:
    """Write CA, server and kubelet-client certificates, the service-account key and the token file."""
    folder.mkdir(parents=True, exist_ok=True)
    openssl = find_tool("openssl")
    run([openssl, "genrsa", "-out", folder / "sa.key", "2048"])
    run([openssl, "rsa", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub"])
    subject = "/CN=trimtab-devcluster-ca"
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", _DAYS]
    run([openssl, *new, "-subj", subject, "-keyout", folder / "ca.key", "-out", folder / "ca.crt"])
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    addresses = sorted({"127.0.0.1", API_SERVICE_ADDRESS, address})
    alternatives = [f"DNS:{name}" for name in ("localhost", *names)] + [f"IP:{ip}" for ip in addresses]
    _issue(folder, "server", "/CN=kube-apiserver", f"subjectAltName={','.join(alternatives)}")
    _issue(
        folder, "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", "extendedKeyUsage=clientAuth"
    )
    lines = []
    for name, (user, groups) in IDENTITIES.items():
        token = secrets.token_hex(16)
        (folder / f"{name}.token").write_text(token)
        lines.append(f'{token},{user},{user},"{",".join(groups)}"')
    (folder / "tokens.csv").write_text("\n".join(lines) + "\n")
    for secret in (*folder.glob("*.key"), *folder.glob("*.token"), folder / "tokens.csv"):
        secret.chmod(0o600)


def _issue(folder: Path, name: str, subject: str, extension: str) -> None:
    openssl = find_tool("openssl")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text(extension + "\n")
    key = folder / f"{name}.key"
    run([openssl, "req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", key, "-out", request])
    authority: list[str | Path] = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial"]
    files: list[str | Path] = ["-in", request, "-out", folder / f"{name}.crt", "-extfile", extensions]
    run([openssl, "x509", "-req", "-days", _DAYS, *authority, *files])


def write_kubeconfig(path: Path, folder: Path, identity: str, server: str) -> None:
    """A kubeconfig (as JSON, which is YAML) for one identity."""
    cluster = {"server": server, "certificate-authority": str(folder / "ca.crt")}
    user = {"token": (folder / f"{identity}.token").read_text()}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": cluster}],
        "users": [{"name": identity, "user": user}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": identity}}],
        "current-context": CONTEXT,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))
