import cv2
import numpy as np

from curation.partition.change_cells import CHANNELS, change_cells, unpack
from curation.partition.optical_flow import DisFlow, FramePair


def texture(seed, height=240, width=320):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


STILL = np.zeros((240, 320, 2), np.float32)


def test_nothing_changes_nothing_shows():
    picture = texture(0)
    assert np.all(unpack(change_cells(picture, picture, picture, STILL)) == 0)


def test_a_flash_is_change_of_the_mean_with_its_sign():
    dark, bright = np.full((240, 320), 100, np.uint8), np.full((240, 320), 140, np.uint8)
    cells = unpack(change_cells(dark, dark, bright, STILL))
    assert np.all(cells[..., 0] == 40)
    assert np.all(cells[..., 2] == 40)
    assert np.all(unpack(change_cells(bright, bright, dark, STILL))[..., 0] == -40)


def test_flow_that_explains_the_pair_leaves_little_of_its_change():
    before = texture(1)
    after = np.roll(before, 4, axis=1)
    pair = FramePair(cv2.cvtColor(before, cv2.COLOR_GRAY2RGB), cv2.cvtColor(after, cv2.COLOR_GRAY2RGB))
    (flow,) = DisFlow()([pair])
    explained, not_explained = (unpack(change_cells(before, before, after, f))[2:-2, 2:-2, 1].mean() for f in (flow, STILL))
    assert explained < 0.2 * not_explained


def test_a_patch_that_moves_alone_is_uneven_where_its_edge_is():
    flow = STILL.copy()
    flow[100:130, 150:190] = 6
    uneven = unpack(change_cells(texture(2), texture(2), texture(2), flow))[..., 3]
    assert uneven[6, 7] > 1
    assert uneven[2, 2] == 0


def test_cells_and_bytes():
    cells = change_cells(*(texture(k, 180) for k in range(3)), np.zeros((180, 320, 2), np.float32))
    assert (cells.shape, cells.dtype) == ((9, 16, CHANNELS), np.uint8)
