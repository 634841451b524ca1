"""The code of docs/notebook.md, in a process that has its own Ray session."""

import subprocess
import sys
import time
from pathlib import Path

from runs_for_real import environment, kill_everything

ROOT = Path(__file__).resolve().parent.parent.parent

CALLER = """
import os, re, signal, sys, threading, time
from pathlib import Path
import ray

ray.init(
    address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error",
    object_store_memory=300 << 20,
)

@ray.remote(num_cpus=2)
class Holder:
    def ready(self):
        return True

notebook, recipe, train, test, release = sys.argv[1:]
text = Path(notebook).read_text().replace("simclr-cifar10", recipe).replace("cifar10/train-*.tar", train)
text = text.replace("cifar10/test-*.tar", test).replace("data.train={train}", "epochs=8")
training, going_on, using = re.findall("```python\\n(.*?)```", text, re.DOTALL)
training = training.replace("losses.append(", "event.step == 3 and stop.ask(); losses.append(")

holder, mine, cells = Holder.remote(), ray.put("mine"), {}
ray.get(holder.ready.remote())
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
environment = dict(os.environ)

def on_a_thread(*codes):
    thread = threading.Thread(target=lambda: [exec(code, cells) for code in codes])
    thread.start()
    return thread

first = on_a_thread(training)
while not os.path.exists(release):
    time.sleep(0.1)
ray.kill(holder)
first.join()
stopped = cells["result"]
assert stopped.status == "interrupted", stopped
assert 4 <= stopped.commit.step < 72, stopped
on_a_thread(going_on).join()
result = cells["result"]
assert (result.status, result.commit.step, result.version) == ("finished", 72, 1), result
assert result.score == result.commit.score > 0.25
steps = [step for step, _ in cells["losses"]]
assert steps == list(range(72)), steps
exec(using, cells)
assert cells["report"].encoder.dim == cells["encoder"].dim
assert cells["classifier"].num_classes == 10

assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
left = dict(os.environ.items() ^ environment.items())
assert left.keys() <= {"LD_LIBRARY_PATH", "TORCHINDUCTOR_CACHE_DIR"}, left  # of importing cv2, and torch.export
assert ray.get(mine) == "mine"  # the session is the same one
print("still open", ray.is_initialized())
"""


def test_a_notebook_trains_twice_off_the_main_thread_in_its_own_session_and_finds_everything_as_it_was(
    place: Path,
) -> None:
    """The code of docs/notebook.md: stopped by a stop object with a commit, gone on with; others hold CPUs at first."""
    home, log, release = place / "caller", place / "caller.log", place / "release"
    recipe = place / "notebook.yaml"
    recipe.write_text((place / "tiny.yaml").read_text().replace("{workers: 2}", "{workers: 1}"))
    shards = [str(place / "shards" / f"train-{number:06d}.tar") for number in range(2)]
    command = [
        sys.executable,
        "-c",
        CALLER,
        str(ROOT / "docs" / "notebook.md"),
        str(recipe),
        *shards,
        str(release),
    ]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment(home), stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while "waiting for Ray" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        release.touch()
        assert process.wait(240) == 0, log.read_text()
    finally:
        if process.poll() is None:
            kill_everything(process)
    said = log.read_text()
    assert (
        "others hold what this run needs: 1 workers x 1 CPUs + 1 readers x 1 CPUs = 2 CPUs, got 1 free"
        in said
    )
    assert "still open True" in said
