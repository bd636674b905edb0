"""Runs nginx, HAProxy and LiteLLM in front of servers, llama.cpp and Prometheus, on ports of 127.0.0.1."""

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtest.workload.prompts import PROMPT_WORDS
from testing.gateways.environment import gateway_environment, prepare_gateway
from testing.processes import free_port, listening, until

MASTER_KEY = "sk-field-0123456789"
"""Key of LiteLLM, which refuses to run without one."""
PROMETHEUS_PASSWORD = "pr0metheus-p4ss"
_PASSWORD_HASH = "$2b$04$abcdefghijklmnopqrstuuf6JdajByS.aICobIzht2tt/DD.QXeYW"
START_S = 90


@contextmanager
def nginx(server: str, *, http: str = "", location: str = "", listen: str = "") -> Iterator[str]:
    """Runs nginx in front of a server. `http` and `location` are added to its blocks of these names, `listen`
    to the line with the port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
            "events { worker_connections 1024; }\n"
            f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
            f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
            f"{http}\nserver {{ listen 127.0.0.1:{port} {listen};\n"
            f"location / {{ proxy_pass {server}; {location} }} }} }}\n"
        )
        command = ["usr/sbin/nginx", "-p", name, "-c", f"{name}/nginx.conf", "-g", "user root;"]
        with _running("nginx", command, port) as url:
            yield url


@contextmanager
def haproxy(servers: Sequence[str], *, defaults: str = "", server_options: str = "") -> Iterator[str]:
    """Runs HAProxy in front of servers, which take turns."""
    port = free_port()
    lines = [
        "defaults",
        " mode http",
        " timeout connect 5s",
        " timeout client 60s",
        " timeout server 60s",
        *(f" {line}" for line in defaults.splitlines()),
        "frontend in",
        f" bind 127.0.0.1:{port}",
        " default_backend out",
        "backend out",
        " balance roundrobin",
        *(
            f" server s{number} {url.removeprefix('http://')} {server_options}"
            for number, url in enumerate(servers)
        ),
    ]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "haproxy.cfg"
        path.write_text("\n".join(lines) + "\n")
        with _running("haproxy", ["usr/sbin/haproxy", "-db", "-f", str(path)], port) as url:
            yield url


@contextmanager
def litellm(server: str, *, model: str, limits: str = "", settings: str = "") -> Iterator[str]:
    """Runs LiteLLM in front of a server, under the name `chat`. Its key is MASTER_KEY. `limits` is added to
    the parameters of the model, `settings` to the file: both YAML."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "config.yaml"
        path.write_text(
            "model_list:\n- model_name: chat\n  litellm_params:\n"
            f"    model: hosted_vllm/{model}\n    api_base: {server}/v1\n    api_key: none\n    {limits}\n"
            "  model_info: {max_input_tokens: 2000, max_tokens: 2048}\n"
            f"{settings}\n"
        )
        command = ["bin/litellm", "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        extra = {"LITELLM_MASTER_KEY": MASTER_KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        with _running("litellm", command, port, **extra) as url:
            yield url


@contextmanager
def llama_cpp(*, slots: int, context: int) -> Iterator[str]:
    """Runs llama.cpp's server with a tiny model. A slot has `context` tokens; a word of a prompt is one."""
    port = free_port()
    script = Path(__file__).with_name("llama_cpp.py")
    with tempfile.TemporaryDirectory() as name:
        numbers = [str(number) for number in (port, context, slots)]
        command = ["bin/python", str(script), f"{name}/tiny.gguf", *numbers, *PROMPT_WORDS]
        with _running("llama.cpp", command, port) as url:
            yield url


@contextmanager
def prometheus(servers: Sequence[str], *, guarded: bool = False) -> Iterator[str]:
    """Runs a Prometheus server that scrapes these servers once a second, as the job `vllm`.

    guarded: whether it answers the user `reader` with PROMETHEUS_PASSWORD only.
    """
    port = free_port()
    targets = ", ".join(f"'{url.removeprefix('http://')}'" for url in servers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: vllm\n"
            f"  static_configs: [{{targets: [{targets}]}}]\n"
        )
        command = ["usr/bin/prometheus", f"--config.file={folder}/prometheus.yml"]
        if guarded:
            (folder / "web.yml").write_text(f"basic_auth_users: {{reader: '{_PASSWORD_HASH}'}}\n")
            command.append(f"--web.config.file={folder}/web.yml")
        command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
        with _running("prometheus", command, port) as url:
            yield url


def check_rules(path: Path) -> str:
    """Returns what Prometheus' own tool says of a file of rules. Raises CalledProcessError for wrong ones."""
    command = [str(prepare_gateway("prometheus") / "usr" / "bin" / "promtool"), "check", "rules", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def _running(name: str, command: Sequence[str], port: int, **extra: str) -> Iterator[str]:
    folder = prepare_gateway(name)
    environment: Mapping[str, str] = {**gateway_environment(name), **extra}
    words = [str(folder / command[0]), *command[1:]]
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(START_S, lambda: listening(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
