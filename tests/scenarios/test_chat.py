"""`locust -f scenarios/chat.py` as a user runs it, against the embedded server."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import trustme

from testing.load_tests import Finished, RunLocust, locust_command, post, two_processes
from testing.processes import ROOT, clean_environment, free_port, listening, simulator, until

HOG = """
from gevent.monkey import get_original
from locust import events
from scenarios.chat import Chat

def compute():
    while True:
        sum(range(100_000))

@events.test_start.add_listener
def _start(**_):
    get_original("_thread", "start_new_thread")(compute, ())
"""


def generated(url: str) -> float:
    page = urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()
    return float(re.findall(r"^vllm:generation_tokens_total\S* (\S+)", page, re.MULTILINE)[0])


def test_levels_leave_rows_samples_and_a_schedule(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, levels="1,3")
    assert run.code == 0, run.said
    rows = run.rows()
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row["level_users"] for row in rows} >= {1, 3}
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert all(row["output_tokens"] == 8 == len(row["chunk_s"]) for row in rows)
    assert all(36 <= row["prompt_tokens"] <= 44 for row in rows), {row["prompt_tokens"] for row in rows}
    assert [users for _, _, users in run.info["schedule"]] == [1, 3]
    assert all(1.9 < end - start < 4 for start, end, _ in run.info["schedule"])
    assert run.info["ended_unix_s"] > run.info["schedule"][-1][1]
    assert run.info["server"]["num_gpu_blocks"] == 401
    assert run.info["server"]["simulated"] == "qwen3-1.7b-t4"
    assert len(run.rows("server.jsonl")) >= 4
    health = run.rows("client-0.jsonl")
    assert len(health) >= 3
    assert health[-1]["started_total"] <= len(rows)


def test_rows_and_the_servers_counter_agree_exactly(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, levels="4", output_tokens="lognormal:12,0.6")
    rows, samples = run.rows(), run.rows("server.jsonl")
    assert {row["outcome"] for row in rows} == {"ok"}
    counted = sum(row["output_tokens"] for row in rows)
    assert counted > 100
    assert samples[-1]["generation_tokens_total"] - samples[0]["generation_tokens_total"] == counted
    assert samples[-1]["finished_total"] - samples[0]["finished_total"] == len(rows)


def test_a_level_may_follow_itself(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, levels="2,2")
    assert run.code == 0, run.said
    assert [users for _, _, users in run.info["schedule"]] == [2, 2]


def test_users_rate_and_time_work_instead_of_levels(run_locust: RunLocust, simulated: str) -> None:
    began = time.monotonic()
    run = run_locust(simulated, "-u", "3", "-r", "3", "-t", "4s")
    assert run.code == 0, run.said
    assert time.monotonic() - began < 25
    assert [users for _, _, users in run.info["schedule"]] == [3]
    assert run.rows()


def test_a_time_limit_ends_a_plan_of_levels(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, "-t", "3s", levels="1,2,3,4,5,6", level_s="30")
    assert run.code == 0, run.said
    assert "time limit" in run.said
    assert {row["outcome"] for row in run.rows()} == {"ok"}


def test_without_levels_a_doubling_sweep_stops_past_a_wall(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, level_s="4", slo_tpot_p95_s="0.0001")
    assert run.code == 0, run.said
    assert [users for _, _, users in run.info["schedule"]] == [1]
    assert "The sweep stops at 1 users: TPOT p95" in run.said


def test_two_processes_share_the_users_and_the_folder(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, *two_processes(), levels="2,4")
    assert run.code == 0, run.said
    rows = run.rows()
    assert {row["worker"] for row in rows} == {"0", "1"}
    assert {row["outcome"] for row in rows} == {"ok"}
    assert len({row["user"] for row in rows}) == 4
    assert [users for _, _, users in run.info["schedule"]] == [2, 4]
    assert [worker["name"] for worker in run.info["workers"]] == ["0", "1"]
    samples = run.rows("server.jsonl")
    counted = sum(row["output_tokens"] for row in rows)
    assert samples[-1]["generation_tokens_total"] - samples[0]["generation_tokens_total"] == counted


def test_fewer_users_count_once_the_streams_of_the_others_have_ended(
    run_locust: RunLocust, simulated: str
) -> None:
    run = run_locust(simulated, *two_processes(), levels="6,1", output_tokens="300")
    assert run.code == 0, run.said
    (_, left, _), (begin, end, users) = run.info["schedule"]
    assert users == 1
    assert begin - left > 1.5  # an answer of 300 tokens takes seconds
    lives = [(row["start_unix_s"], row["start_unix_s"] + row["end_s"]) for row in run.rows()]
    for at in (begin + 0.05, (begin + end) / 2, end - 0.05):
        assert sum(start <= at < ended for start, ended in lives) <= 1


def test_a_worker_that_cannot_take_part_ends_the_test(simulated: str, tmp_path: Path) -> None:
    """Here: it does not have the file of prompts."""
    (tmp_path / "elsewhere").mkdir()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    port = str(free_port())
    environment = clean_environment(PYTHONPATH=str(ROOT))
    flags = [
        "--master",
        "--expect-workers",
        "1",
        "--master-bind-host",
        "127.0.0.1",
        "--master-bind-port",
        port,
    ]
    command = locust_command(tmp_path / "reports", simulated, *flags, levels="1", prompts="prompts.jsonl")
    command[command.index("scenarios/chat.py")] = str(ROOT / "scenarios" / "chat.py")
    worker = [*command[:3], "--worker", "--master-host", "127.0.0.1", "--master-port", port]
    with (
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as master,
        subprocess.Popen(
            worker, cwd=tmp_path / "elsewhere", env=environment, stderr=subprocess.DEVNULL
        ) as other,
    ):
        said = master.communicate(timeout=60)[1]
        other.wait(30)
    assert master.returncode == 2, said
    assert "A worker cannot take part: the file prompts.jsonl does not exist." in said


def test_lengths_follow_the_seed_and_texts_do_not_repeat(
    run_locust: RunLocust, simulated: str, tmp_path: Path
) -> None:
    lengths = []
    for name in ("a", "b"):
        run = run_locust(
            simulated,
            levels="1",
            prompt_tokens="20-90",
            output_tokens="2-9",
            reports_dir=str(tmp_path / name),
        )
        run = Finished(run.code, run.said, tmp_path / name)
        rows = run.rows()
        lengths.append([row["max_tokens"] for row in rows][:8])
        samples = run.rows("server.jsonl")
        assert samples[-1]["prefix_cache_hits_total"] == samples[0]["prefix_cache_hits_total"]
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0])) > 1


def test_turns_send_the_history_back(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, levels="2", turns="3", think_s="0.05", level_s="3")
    rows = run.rows()
    assert {row["outcome"] for row in rows} == {"ok"}
    by_turn = {turn: [r["prompt_tokens"] for r in rows if r["turn"] == turn] for turn in (0, 1, 2)}
    assert max(by_turn[0]) < min(by_turn[1]) < min(by_turn[2])
    samples = run.rows("server.jsonl")
    assert samples[-1]["prefix_cache_hits_total"] > samples[0]["prefix_cache_hits_total"]


def test_own_prompts_are_sent_as_they_are(run_locust: RunLocust, simulated: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 3}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = run_locust(simulated, levels="1", prompts=str(prompts))
    rows = run.rows()
    assert {row["max_tokens"] for row in rows} == {3}
    assert len({row["prompt_tokens"] for row in rows}) == 1


def test_thinking_is_counted_for_ttft_and_the_answer_is_later(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, levels="1", thinking="on", output_tokens="40")
    row = run.rows()[0]
    assert row["chunk_kinds"].startswith("r")
    assert row["first_answer_s"] is None or row["first_answer_s"] > row["chunk_s"][0]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_loses_nothing_and_exits_130(simulated: str, tmp_path: Path, sent: signal.Signals) -> None:
    reports = tmp_path / "reports"
    command = locust_command(reports, simulated, levels="4", level_s="60", output_tokens="600")

    def in_flight() -> list[int]:
        lines = [
            line for path in reports.glob("*/client-*.jsonl") for line in path.read_text().splitlines(True)
        ]
        return [json.loads(line)["in_flight"] for line in lines if line.endswith("\n")]

    with subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        until(60, lambda: 4 in in_flight())
        process.send_signal(sent)
        began = time.monotonic()
        said = process.communicate(timeout=30)[1]
        assert time.monotonic() - began < 12
    run = Finished(process.returncode, said, reports)
    assert run.code == 130, said
    assert run.info["ended_unix_s"] is not None
    rows = run.rows()
    assert sum(row["outcome"] == "cancelled" for row in rows) == 4
    assert all(row["chunk_s"] for row in rows if row["outcome"] == "cancelled" and row["end_s"] > 1)
    assert "Traceback" not in said


def test_the_web_page_starts_edits_and_stops_and_shows_bad_input(simulated: str, tmp_path: Path) -> None:
    reports, port = tmp_path / "reports", free_port()
    command = locust_command(reports, simulated, "--web-host", "127.0.0.1", "--web-port", str(port))
    command.remove("--headless")
    page = f"http://127.0.0.1:{port}"

    def schedule() -> list[int]:
        files = list(reports.glob("*/run.json"))
        return [users for _, _, users in json.loads(files[0].read_text())["schedule"]] if files else []

    def exceptions() -> str:
        return str(urllib.request.urlopen(f"{page}/exceptions", timeout=10).read().decode())

    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
        try:
            until(20, lambda: listening(port))
            common = {"spawn_rate": "10", "host": simulated}
            post(f"{page}/swarm", user_count="2", prompt_tokens="30", **common)
            until(20, lambda: schedule() == [2])
            post(f"{page}/swarm", user_count="3", **common)
            until(20, lambda: schedule() == [2, 3])
            urllib.request.urlopen(urllib.request.Request(f"{page}/stop", method="POST"), timeout=20).read()
            run = Finished(0, "", reports)
            until(20, lambda: bool(run.info["ended_unix_s"]))
            assert run.info["settings"]["prompt_tokens"] == "30"
            assert {row["outcome"] for row in run.rows()} == {"ok"}
            post(f"{page}/swarm", user_count="1", levels="1,x", **common)
            until(20, lambda: "is not a list of user counts" in exceptions())
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) in (0, 2)
    assert len(list(reports.iterdir())) == 1


def test_a_killed_run_can_still_be_read(simulated: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    command = locust_command(reports, simulated, levels="2", level_s="60")
    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
        time.sleep(7)
        process.kill()
    run = Finished(-9, "", reports)
    assert run.info["ended_unix_s"] is None
    assert len(run.rows()) > 10


def test_a_run_folder_that_vanishes_is_there_again_at_the_end(simulated: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    command = locust_command(reports, simulated, levels="2", level_s="6")
    with subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        until(20, lambda: len(Finished(0, "", reports).rows()) > 5)
        shutil.rmtree(reports)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert "cannot be written" in said
    run = Finished(0, said, reports)
    assert len(run.rows()) > 5
    assert run.info["ended_unix_s"]
    assert "Traceback" not in said


def test_a_hogged_load_generator_is_not_trusted_and_the_analysis_refuses(
    simulated: str, tmp_path: Path
) -> None:
    """A scenario that computes beside its requests: their times are then its own."""
    scenario = tmp_path / "hog.py"
    scenario.write_text(HOG)
    reports = tmp_path / "reports"
    command = locust_command(reports, simulated, levels="4", level_s="8")
    command[command.index("scenarios/chat.py")] = str(scenario)
    environment = clean_environment(PYTHONPATH=str(ROOT))
    subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, timeout=60, check=True)
    analysis = [sys.executable, "-m", "analysis.capacity", str(reports)]
    done = subprocess.run(analysis, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stdout
    assert re.search(r"No level can be trusted: .*load generator (busy|late)", done.stdout)
    (model,) = json.loads((reports / "capacity.json").read_text())["models"]
    assert [level["trusted"] for level in model["levels"]] == [False]


def test_https_with_a_private_authority_and_a_path_prefix(run_locust: RunLocust, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca, chain, key = tmp_path / "ca.pem", tmp_path / "chain.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(str(ca))
    certificate.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    with simulator("--certfile", str(chain), "--keyfile", str(key), "--root-path", "/gateway") as url:
        assert url.startswith("https://127.0.0.1")
        run = run_locust(f"{url}/v1/", levels="2", ca_file=str(ca))
        assert run.code == 0, run.said
        assert {row["outcome"] for row in run.rows()} == {"ok"}
        assert run.info["server"]["num_gpu_blocks"]
        refused = run_locust(url, levels="2", reports_dir=str(tmp_path / "none"))
    assert refused.code == 2
    assert "--ca-file" in refused.said


def test_a_key_and_a_password_reach_no_file_and_no_log(run_locust: RunLocust) -> None:
    with simulator("--api-key", "sk-very-secret") as url:
        run = run_locust(url, levels="1", environment={"LOADTEST_API_KEY": "sk-very-secret"})
        assert run.code == 0, run.said
        missing = run_locust(url, levels="1")
    host = url.replace("http://", "http://ann:hunter2@")
    unreachable = run_locust(host, levels="1")
    assert missing.code == unreachable.code == 2
    assert "LOADTEST_API_KEY" in missing.said
    everything = run.said + missing.said + unreachable.said
    everything += "".join(path.read_text() for path in run.folder.iterdir())
    assert "sk-very-secret" not in everything
    assert "hunter2" not in everything


def test_a_server_without_metrics_is_still_measured(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, levels="1", metrics_url="off")
    assert run.code == 0, run.said
    assert run.rows()
    assert run.info["server"]["num_gpu_blocks"] is None
    assert run.rows("server.jsonl") == []


def test_failing_requests_still_exit_0_and_stop_the_sweep(run_locust: RunLocust) -> None:
    with simulator("--max-num-queued-reqs", "4") as url:
        run = run_locust(url, levels="1,12,16", output_tokens="40", level_s="4")
    assert run.code == 0, run.said
    assert "The sweep stops at 12 users: more than half of the requests failed" in run.said
    assert {row["http_status"] for row in run.rows()} == {200, 503}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": "1,x"}, "--levels: '1,x' is not a list of user counts"),
        ({"levels": "0"}, "--levels: '0' is not a list of user counts"),
        ({"prompt_tokens": "normal:3"}, "--prompt-tokens: 'normal:3' is not a distribution"),
        ({"model": "GPT-7"}, "does not serve 'GPT-7'; --model can be: Qwen3-1.7B"),
        ({"prompt_tokens": "9000"}, "--prompt-tokens 9000 with --output-tokens 8 does not fit"),
        ({"prompt_tokens": "0"}, "--prompt-tokens: '0' is less than one token"),
        ({"prompt_tokens": "6410", "output_tokens": "100"}, "does not fit: the model's context is"),
        ({"level_s": "inf"}, "--level-s:"),
        ({"settle_s": "9"}, "--settle-s must be shorter than --level-s"),
        ({"prompts": "/no/such/file"}, "/no/such/file does not exist"),
        ({"gpu_metrics": "nvml"}, "--gpu-metrics nvml: NVML does not work on this machine"),
        ({"thinking": "maybe"}, "--thinking:"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_2(
    run_locust: RunLocust, simulated: str, changes: dict[str, str], said: str
) -> None:
    run = run_locust(simulated, **changes)
    assert run.code == 2, run.said
    assert said in run.said
    assert "Traceback" not in run.said
    assert not run.reports.exists()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (None, "No server is given"),
        ("127.0.0.1:80", "is not an address such as"),
        ("http://127.0.0.1:99999", "is not an address such as"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_a_bad_host_gets_one_sentence(run_locust: RunLocust, host: str | None, said: str) -> None:
    run = run_locust(host)
    assert run.code == 2, run.said
    assert said in run.said
    assert "Traceback" not in run.said


def test_levels_with_users_is_an_error(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, "-u", "3", levels="1,2")
    assert run.code == 2
    assert "--levels and -u exclude each other" in run.said


def test_an_unknown_setting_in_the_environment_is_named(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, environment={"LOADTEST_LEVLES": "1"})
    assert run.code == 2
    assert "did you mean LOADTEST_LEVELS?" in run.said
