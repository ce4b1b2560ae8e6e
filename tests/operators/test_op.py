import av
import pytest
import threadpoolctl

from curation.media import container
from operators.op import WHOLE_UNIT, Op, Step, check_chain, each, fuse_ops, run_chain


def rows(count):
    return [{"clip_id": f"c{i}", "video_id": "v", "index": i} for i in range(count)]


@each
def measure(row):
    return {**row, "luma_mean": float(row["index"])}


@each
def fail_on_three(row):
    if row["index"] == 3:
        raise RuntimeError("three\nis bad")
    return {**row, "luma_min": 1.0}


def op(fn, **kwargs):
    return Op(fn, reads=("index",), writes=("luma_mean",), **kwargs)


def test_a_chain_that_reads_what_nobody_wrote_is_refused():
    chain = [Op(measure, reads=("luma_max",), writes=())]
    with pytest.raises(ValueError, match=r"measure reads \['luma_max'\], which nothing before it writes"):
        check_chain(chain, {"clip_id"})
    check_chain(chain, {"luma_max"})


def test_neighbours_of_equal_resources_share_a_step():
    chain = [op(measure), op(fail_on_three), op(measure, num_cpus=2), op(measure, num_cpus=2), op(measure)]
    assert [len(step) for step in fuse_ops(chain)] == [2, 2, 1]


def test_an_argument_that_an_operator_does_not_take_is_refused_before_any_row():
    @each
    def scaled(row, factor):
        return {**row, "luma_mean": factor}

    check_chain([Op(scaled, reads=(), writes=("luma_mean",), args={"factor": 2})], ())
    with pytest.raises(ValueError, match=r"scaled takes no argument \['how'\]"):
        check_chain([Op(scaled, reads=(), writes=("luma_mean",), args={"how": 2})], ())


def test_each_row_goes_through_the_whole_step_before_the_next():
    seen = []

    def tell(name):
        def fn(rows):
            seen.extend(f"{name}{row['index']}" for row in rows)
            return rows

        return fn

    run_chain([op(tell("a")), op(tell("b"))], rows(3))
    assert seen == ["a0", "b0", "a1", "b1", "a2", "b2"]


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_failing_row_is_marked_and_the_others_go_on_in_order(batch):
    done = run_chain([op(fail_on_three, batch=batch)], rows(6))
    assert [row["index"] for row in done] == list(range(6))
    errors = {row["index"]: row["error"] for row in done if row.get("error")}
    assert list(errors) == [3]
    assert errors[3].startswith("fail_on_three: RuntimeError: three\nis bad (test_op.py:")
    assert all(row["luma_min"] == 1.0 for row in done if row["index"] != 3)


def test_a_failing_batch_is_halved_not_redone_row_by_row():
    calls = []

    def count(rows):
        calls.append(len(rows))
        return fail_on_three(rows)

    run_chain([op(count, batch=8)], rows(8))
    assert calls == [8, 4, 2, 2, 1, 1, 4]


def test_an_operator_on_a_whole_unit_fails_as_a_whole():
    done = run_chain([op(fail_on_three, batch=WHOLE_UNIT)], rows(6))
    assert all("three" in row["error"] for row in done)


def test_rows_already_out_pass_by_in_their_place():
    seen = []

    def look(rows):
        seen.append([row["index"] for row in rows])
        return rows

    mixed = rows(5)
    mixed[1]["reject"], mixed[3]["error"] = "dark", "broken"
    assert run_chain([op(look, batch=5)], mixed) == mixed
    assert seen == [[0], [2], [4]]


def test_what_a_failed_try_changed_is_gone():
    def spoil(rows):
        rows[0]["luma_mean"] = 99.0
        raise ValueError("no")

    done = run_chain([op(spoil)], rows(1))
    assert "luma_mean" not in done[0]


def test_an_operator_is_never_called_with_nothing():
    def refuse(rows):
        assert rows
        return rows

    assert run_chain([op(refuse, batch=4)], []) == []
    out = [{**row, "reject": "x"} for row in rows(2)]
    assert run_chain([op(refuse, batch=4)], out) == out


def test_a_class_is_built_once_and_time_is_counted():
    class Model:
        built = 0

        def __init__(self):
            Model.built += 1

        def __call__(self, rows):
            return rows

    step = Step([op(Model), op(measure)])
    step(rows(3))
    step(rows(3))
    assert Model.built == 1
    assert set(step.cpu_s) == {"Model", "measure"}


def test_a_full_disk_is_no_rows_fault():
    def write(rows):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_chain([op(write)], rows(2))


def test_what_the_codec_cannot_read_is_the_rows_own():
    def read(rows):
        raise av.error.FFmpegError(5, "Input/output error")

    assert "Input/output error" in run_chain([op(read)], rows(1))[0]["error"]


def test_an_operator_may_make_many_rows_of_one():
    def split(rows):
        return [{**row, "index": row["index"] * 10 + i} for row in rows for i in range(2)]

    done = run_chain([op(split), op(measure)], rows(2))
    assert [row["luma_mean"] for row in done] == [0.0, 1.0, 10.0, 11.0]


def test_a_careful_step_says_which_row_is_next_and_takes_them_one_by_one():
    seen = []

    def look(rows):
        seen.append([row["index"] for row in rows])
        return rows

    Step([op(look, batch=8)])(rows(3), lambda row: seen.append(row["index"]))
    assert seen == [0, [0], 1, [1], 2, [2]]


def test_a_careful_step_blames_no_row_for_an_operator_that_relates_them():
    blamed = []
    Step([op(measure, batch=WHOLE_UNIT)])(rows(3), blamed.append)
    assert blamed == [None]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        ModuleNotFoundError("No module named 'torch'"),
        av.error.MemoryError(12, "Cannot allocate memory"),
        av.error.FileNotFoundError(2, "No such file or directory"),
        av.error.PermissionError(13, "Permission denied"),
        av.error.OSError(116, "Stale file handle"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_machine_did_is_no_rows_fault(error):
    def work(rows):
        raise error

    with pytest.raises(type(error)):
        run_chain([op(work, batch=2)], rows(4))


def test_a_step_keeps_codecs_to_its_cores(monkeypatch):
    given = []
    monkeypatch.setattr(container, "set_threads", given.append)
    Step([op(measure, num_cpus=3)])
    Step([op(measure, num_cpus=0.25)])
    assert given == [3, 1]


def test_a_step_keeps_blas_to_its_cores():
    with threadpoolctl.threadpool_limits(None):  # restores the limits afterwards
        Step([op(measure, num_cpus=1)])
        assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"} == {1}


def test_a_ray_only_stage_says_so_locally():
    with pytest.raises(ValueError, match="exists only as a Ray Data stage"):
        run_chain([op(measure, dataset=lambda ds: ds)], rows(1))
