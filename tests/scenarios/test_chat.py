"""`locust -f scenarios/chat.py` as a user runs it, against the embedded server."""

import itertools
import json
import time
from pathlib import Path

import trustme

from testing.load_tests import Finished, RunLocust, two_processes
from testing.processes import simulator


def test_levels_leave_rows_samples_and_a_schedule(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, levels="1,3")
    assert run.code == 0, run.said
    rows = run.rows()
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row["level_users"] for row in rows} >= {1, 3}
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert all(row["output_tokens"] == 8 == len(row["chunk_s"]) for row in rows)
    assert all(36 <= row["prompt_tokens"] <= 44 for row in rows), {row["prompt_tokens"] for row in rows}
    assert run.levels == [1, 3]
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
    assert [users for _, _, users in run.info["schedule"]][:2] == [2, 2]


def test_users_rate_and_time_work_instead_of_levels(run_locust: RunLocust, simulated: str) -> None:
    began = time.monotonic()
    run = run_locust(simulated, "-u", "3", "-r", "3", "-t", "4s")
    assert run.code == 0, run.said
    assert time.monotonic() - began < 25
    assert run.levels == [3]
    assert run.rows()


def test_a_time_limit_ends_a_plan_of_levels(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, "-t", "3s", levels="1,2,3,4,5,6", level_s="30")
    assert run.code == 0, run.said
    assert "time limit" in run.said
    assert {row["outcome"] for row in run.rows()} == {"ok"}


def test_without_levels_a_doubling_sweep_stops_past_a_wall(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, level_s="4", slo_tpot_p95_s="0.0001")
    assert run.code == 0, run.said
    assert run.levels == [1]
    assert "The sweep stops at 1 users: TPOT p95" in run.said


def test_two_processes_share_the_users_and_the_folder(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, *two_processes(), levels="2,4")
    assert run.code == 0, run.said
    rows = run.rows()
    assert {row["worker"] for row in rows} == {"0", "1"}
    assert {row["outcome"] for row in rows} == {"ok"}
    assert len({row["user"] for row in rows}) == 4
    assert run.levels == [2, 4]
    assert [worker["name"] for worker in run.info["workers"]] == ["0", "1"]
    samples = run.rows("server.jsonl")
    counted = sum(row["output_tokens"] for row in rows)
    assert samples[-1]["generation_tokens_total"] - samples[0]["generation_tokens_total"] == counted


def test_fewer_users_count_once_the_streams_of_the_others_have_ended(
    run_locust: RunLocust, simulated: str
) -> None:
    run = run_locust(simulated, *two_processes(), levels="6,1", output_tokens="300")
    assert run.code == 0, run.said
    (_, left, _), (begin, end, users) = next(
        pair for pair in itertools.pairwise(run.info["schedule"]) if pair[0][2] != pair[1][2]
    )
    assert users == 1
    assert begin - left > 1.5  # an answer of 300 tokens takes seconds
    lives = [(row["start_unix_s"], row["start_unix_s"] + row["end_s"]) for row in run.rows()]
    for at in (begin + 0.05, (begin + end) / 2, end - 0.05):
        assert sum(start <= at < ended for start, ended in lives) <= 1


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
    rows = run.rows()
    assert rows
    for row in rows:
        kinds = row["chunk_kinds"]
        assert kinds.startswith("r")
        assert kinds == "r" * kinds.count("r") + "c" * kinds.count("c")
        assert row["first_answer_s"] == row["chunk_s"][kinds.index("c")] > row["chunk_s"][0]


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


def test_users_start_spread_over_a_think_time_and_short_levels_are_named(
    run_locust: RunLocust, simulated: str
) -> None:
    run = run_locust(simulated, levels="24", level_s="7", think_s="6")
    assert run.code == 0, run.said
    assert "Levels of 7 s are short for a think time of 6 s (mean)" in run.said
    assert "Use --level-s 19 or more." in run.said
    assert any("think time" in warning for warning in run.info["warnings"])
    firsts: dict[int, float] = {}
    for row in run.rows():
        firsts[row["user"]] = min(row["start_unix_s"], firsts.get(row["user"], row["start_unix_s"]))
    began = run.info["schedule"][0][0]
    late = [at for at in firsts.values() if at - began > 2]
    assert len(late) > 8  # of 24, two thirds are due; within the settling time of 0.5 s there would be none


def test_a_server_without_metrics_is_still_measured(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, levels="1", metrics_url="off")
    assert run.code == 0, run.said
    assert run.rows()
    assert run.info["server"]["num_gpu_blocks"] is None
    assert run.rows("server.jsonl") == []


def test_failing_requests_still_exit_0_and_stop_the_sweep(run_locust: RunLocust) -> None:
    with simulator("--max-num-queued-reqs", "4") as url:
        run = run_locust(url, output_tokens="40", level_s="4")
    assert run.code == 0, run.said
    assert "The sweep stops at 8 users: more than 1 % of the requests failed (" in run.said
    assert {row["http_status"] for row in run.rows()} == {200, 503}
