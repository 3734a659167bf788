import torch

from fedtalk_ray.model.told import own_of_photo


def test_a_photo_has_the_lips_that_its_sound_begins_with_moved_to_its_aperture(bender) -> None:
    """A quarter of a difference of a deviation counts, and all beyond, in each number as it goes with the aperture."""
    first = torch.tensor([0.2, -1.0, 0.5, 0.0, 0.3, 0.1])
    along = bender.with_aperture()
    for aperture, counted in ((0.2, 0.0), (0.8, 0.15), (-0.4, -0.15), (1.2, 0.25), (3.2, 2.25), (-2.8, -2.25)):
        found = own_of_photo(bender, torch.tensor(aperture), first)
        torch.testing.assert_close(found, first + counted * along)
