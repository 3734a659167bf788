"""Distributed corpora through the whole pipeline: a test set becomes unseen, parts of a video become clips."""

from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.corpora.listing import list_corpus
from fedtalk_ray.generation.scene import dubbed_pictures
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import read_video
from fedtalk_ray.shards.format import Piece, load_manifest
from fedtalk_ray.shards.people import People
from fedtalk_ray.shards.prepare import prepare


@pytest.mark.grid
def test_layouts_become_shards(ray_cluster: None, grid_root: Path, tmp_path: Path) -> None:
    """Two speakers of GRID as LRS3, one of them in its test set, and both side by side as one video of HDTF."""
    clips = {who: [read_video(path) for path in sorted((grid_root / who).glob("*.mpg"))[:2]] for who in ("s1", "s2")}
    for name, video, who in (("trainval", "0af00UcTOSc", "s1"), ("test", "-0Fi83BHQsM", "s2")):
        folder = tmp_path / "lrs3" / name / video
        folder.mkdir(parents=True)
        for number, clip in enumerate(clips[who], 50_001):
            write_video(folder / f"{number}.mp4", clip.frames[:50, 40:264, 68:292], clip.audio[:32_000])
            (folder / f"{number}.txt").write_text(f"Text:  BIN BLUE\nConf:  5\nRef:  {video}\n")
    hdtf = tmp_path / "hdtf"
    hdtf.mkdir()
    both = np.concatenate([clips["s1"][0].frames[:75], clips["s2"][0].frames[:75]], axis=2)
    write_video(hdtf / "WDA_AdamSmith.mp4", both, clips["s2"][0].audio)
    (hdtf / "WDA_annotion_time.txt").write_text("AdamSmith.mp4 00:00-00:02 00:01-00:03\n")
    (hdtf / "WDA_crop_wh.txt").write_text("AdamSmith_0.mp4 360 360 0 288\nAdamSmith_1.mp4 360 360 0 288\n")
    (hdtf / "WDA_resolution.txt").write_text("AdamSmith.mp4 288\n")
    sources = [*list_corpus("lrs3", tmp_path / "lrs3"), *list_corpus("hdtf", hdtf)]
    prepare("lrs3", sources, tmp_path / "shards", size=32, autoencoder="patch")
    manifest = load_manifest(tmp_path / "shards")
    assert manifest.clients() == ["0af00UcTOSc", "AdamSmith"] and manifest.unseen() == ["-0Fi83BHQsM"]
    assert manifest.rejected == 0
    assert [clip.split for clip in manifest.identities["-0Fi83BHQsM"]] == ["test", "test"]
    assert [(clip.name, clip.frames) for clip in manifest.identities["AdamSmith"]] == [
        ("AdamSmith_0-000", 50),
        ("AdamSmith_1-000", 50),
    ]
    people = People(tmp_path / "shards", manifest)
    for who in manifest.identities:
        for clip in manifest.identities[who]:
            check_pictures(people.clip(who, clip.name), 288 if who == "AdamSmith" else 224)


def check_pictures(pieces: list[Piece], height: int) -> None:
    """A clip's own pictures, cut out of its film in time and space: the face lies in them where the crop was taken."""
    scene = dubbed_pictures(pieces)
    assert scene is not None and scene.reference.picture.shape[0] == height
    for shown, crop in zip(scene.frames(50), pieces[0].frames, strict=True):
        assert np.abs(shown.crop(32).astype(int) - crop).mean() < 1.5
