"""What happens to sites, their lines and their coordinator, one thing after the other, at stages that a seed draws."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import sleep

import ray

from fedtalk_ray.errors import UserError
from fedtalk_ray.privacy.protocol import STAGES
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.sites.folder import SiteFolder
from tests.ray.own_federation import OwnFederation
from tests.ray.own_lines import Line
from tests.ray.sites_at_work import KILLED, Beside

CUT, SLOW, HUNG, FULL = "cut off", "slow", "hung", "disk full"
COORDINATOR, DOOR, NO_ROOM = "coordinator killed", "door killed", "coordinator's disk full"
FAULTS = (KILLED, CUT, SLOW, HUNG, FULL, COORDINATOR, DOOR, NO_ROOM)


class Faults:
    """Lets so many of them happen, each kind about as often, one a round; then it leaves everybody in peace."""

    def __init__(
        self,
        federation: OwnFederation,
        sites: list[SiteFolder],
        run: RunFolder,
        count: int,
        seed: int,
        longest: float,
    ) -> None:
        """longest: seconds that a line is cut, or a site hangs, at most: more than stages wait for."""
        self._federation, self._sites, self._run, self._longest = federation, sites, run, longest
        self._random = random.Random(seed)
        kinds = [FAULTS[place % len(FAULTS)] for place in range(count)]
        self._random.shuffle(kinds)
        self._kinds = kinds
        self.happened: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    @property
    def all_happened(self) -> bool:
        return not self._kinds

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while self._kinds and not self._over.is_set():
            kind, site = self._kinds[-1], self._random.choice(self._sites).path
            beside, before = Beside(site), self._rounds()
            beside.meets.write_text(f"{self._random.choice(('train', *STAGES))} {kind}")
            self._until(lambda met=beside.met, before=before: met.exists() or self._rounds() > before + 2)
            try:
                # It came to no such stage in three rounds: it was late, or somebody else was.
                beside.meets.unlink()
                continue
            except FileNotFoundError:
                pass
            self._until(beside.met.exists)
            before = self._rounds()
            self._happen(kind, beside.met, self._federation.lines[site.parents[1].name], site.parent / "filler")
            self.happened[kind] += 1
            self._kinds.pop()
            self._until(lambda before=before: self._rounds() > before)

    def _happen(self, kind: str, met: Path, line: Line, filler: Path) -> None:
        entrance = self._federation.entrance
        assert entrance is not None
        lasts = self._longest * self._random.uniform(0.2, 1.0)
        if kind == COORDINATOR:
            entrance.gate.kill()
        if kind == DOOR:
            # Ray starts another one.
            ray.kill(self._random.choice(entrance.doors.actors), no_restart=False)
        if kind == HUNG:
            self._over.wait(lasts)
        if kind == NO_ROOM:
            filler = self._federation.disk / "filler"
        if kind in (FULL, NO_ROOM):
            _fill(filler)
        if kind == CUT:
            line.up = False
        if kind == SLOW:
            line.rate = 3000.0
        met.unlink()
        if kind in (FULL, CUT, SLOW, NO_ROOM):
            self._over.wait(lasts)
        filler.unlink(missing_ok=True)
        line.up, line.rate = True, 0.0

    def _rounds(self) -> int:
        return self._run.recorded() if self._run.history_file.exists() else 0

    def _until(self, met: Callable[[], bool]) -> None:
        while not (met() or self._over.is_set()):
            sleep(0.02)


def _fill(path: Path) -> None:
    """Leaves no room on the disk that the file is on."""
    with open(path, "wb", buffering=0) as file:
        block = bytes(1 << 16)
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]


def run_under_faults(
    federation: OwnFederation, config: TrainConfig, sites: list[SiteFolder], count: int, seed: int
) -> RunFolder:
    """Runs to the end while so many faults happen; a run whose coordinator was killed is started again."""
    run, late_after = RunFolder(Path(config.run)), 3.0
    faults = Faults(federation, sites, run, count, seed, longest=1.5 * late_after)
    try:
        resume = False
        while True:
            try:
                federation.serve(config, late_after, resume=resume)
                break
            except UserError as error:
                assert "--resume" in str(error) or "No space left" in str(error), error
                resume = run.checkpoints.exists()
                sleep(0.5)
    finally:
        faults.close()
    print(f"happened: {dict(faults.happened)}")
    assert faults.all_happened, f"happened: {dict(faults.happened)}"
    return run
