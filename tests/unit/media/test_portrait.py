"""The face of a picture: at any size and place, the largest of several, and refused with a reason."""

import functools

import numpy as np
import pytest

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.media.faces import NoFaceError
from fedtalk_ray.media.portrait import crop_portrait


@functools.cache
def drawn(size: int, identity: int = 2) -> np.ndarray:
    """A drawn face that fills its picture, aligned; a large one is a small one with larger pixels."""
    if size > 250:
        return drawn(size // 3, identity).repeat(3, axis=0).repeat(3, axis=1)
    return render_clip(identity, 0, size=size, seconds=0.04).video.frames[0]


def placed(height: int, width: int, *faces: tuple[int, int, int, int]) -> np.ndarray:
    """A grey picture with drawn faces, each (side, x, y, identity); what lies beyond the edge is cut."""
    picture = np.full((height + 800, width + 800, 3), 128, np.uint8)
    for side, x, y, identity in faces:
        picture[400 + y : 400 + y + side, 400 + x : 400 + x + side] = drawn(side, identity)
    return np.ascontiguousarray(picture[400 : 400 + height, 400 : 400 + width])


def distance(crop: np.ndarray, identity: int) -> float:
    """Mean absolute difference from the drawn, aligned face: of 0 to 255."""
    return float(np.abs(crop.astype(int) - drawn(len(crop), identity)).mean())


@pytest.mark.parametrize(
    ("height", "width", "side", "x", "y"),
    [
        (291, 357, 150, 101, 77),  # odd sides
        (1500, 1100, 170, 500, 800),  # a face of a tenth of the picture
        (128, 128, 128, 0, 0),  # nothing but the face
    ],
)
def test_the_face_is_cropped_as_it_was_drawn(height: int, width: int, side: int, x: int, y: int) -> None:
    made = crop_portrait(placed(height, width, (side, x, y, 2)), 64)
    assert made.crop.shape == (64, 64, 3) and made.crop.dtype == np.uint8
    assert made.notes == ()
    assert distance(made.crop, 2) < 20 < distance(made.crop[:, ::-1], 2)


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_faces_the_larger_one_speaks_and_its_place_is_said(turned: bool) -> None:
    picture = placed(300, 560, (130, 40, 60, 3), (210, 300, 40, 2))
    made = crop_portrait(np.ascontiguousarray(picture[:, ::-1]) if turned else picture, 64)
    (note,) = made.notes
    assert note.startswith("2 faces found; the largest speaks (x ") and "--face N takes another" in note
    left = int(note.split("(x ")[1].split(" ")[0])
    assert (left < 250) == turned
    assert distance(made.crop[:, ::-1] if turned else made.crop, 2) < 22


def test_a_small_face_and_one_close_to_the_edge_are_used_and_said() -> None:
    (note,) = crop_portrait(placed(256, 300, (128, -20, 60, 2)), 64).notes
    assert note.startswith("the face is close to the picture's edge")
    (note,) = crop_portrait(placed(110, 120, (50, 30, 30, 2)), 128).notes
    assert 42 <= int(note.split("the face is only about ")[1].split(" ")[0]) <= 58 and "128 or more" in note


@pytest.mark.parametrize(("x", "y", "edge"), [(-38, 60, "left"), (300 - 90, 60, "right"), (70, 256 - 90, "bottom")])
def test_a_face_that_an_edge_cuts_is_refused_with_the_edge(x: int, y: int, edge: str) -> None:
    with pytest.raises(NoFaceError) as caught:
        crop_portrait(placed(256, 300, (128, x, y, 2)), 64)
    assert str(caught.value) == f"the face is cut off at the picture's {edge} edge; give one that shows all of it"


@pytest.mark.parametrize(
    ("quarters", "mend"), [(1, "by 90 degrees to the right"), (3, "by 90 degrees to the left"), (2, "upside down")]
)
def test_a_face_on_its_side_is_refused_with_what_to_do(quarters: int, mend: str) -> None:
    """`quarters` to the left were done, so as many to the right mend it."""
    turned = np.ascontiguousarray(np.rot90(placed(256, 300, (128, 70, 60, 2)), quarters))
    with pytest.raises(NoFaceError, match=f"only when it is turned {mend}; turn it so and save it"):
        crop_portrait(turned, 64)


def test_no_face_and_too_few_pixels_are_said_with_what_would_be_right() -> None:
    with pytest.raises(NoFaceError, match="400 x 31 pixels are too few to find a face in"):
        crop_portrait(np.zeros((31, 400, 3), np.uint8), 64)
    with pytest.raises(NoFaceError, match=r"no face was found in 120 x 100 pixels; give a picture of one face"):
        crop_portrait(np.full((100, 120, 3), 90, np.uint8), 64)
