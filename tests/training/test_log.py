import json

from textdiff.training.log import Log


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_resumed_log_has_each_step_once_and_nan_is_null(tmp_path):
    with Log(tmp_path, 0, 0) as log:
        for step in (1, 2, 3, 4):
            log.write(step, {"loss": float(step)})
        log.write_evaluation(2, {"nll": float("nan")})
        log.write_evaluation(3, {"nll": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut off by a crash
    with Log(tmp_path, 3, 2) as log:  # saved at step 3, before that step was evaluated
        log.write(4, {"loss": float("inf")})
        log.write_evaluation(3, {"nll": 1.0})
    assert [(row["step"], row.get("loss"), row.get("evaluation")) for row in rows(tmp_path)] == [
        (1, 1.0, None),
        (2, 2.0, None),
        (3, 3.0, None),
        (2, None, {"nll": None}),
        (4, None, None),
        (3, None, {"nll": 1.0}),
    ]
