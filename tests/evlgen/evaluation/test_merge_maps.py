import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evlgen import miniworld
from evlgen.evaluation import merge_maps as subject
from evlgen.miniworld import Scene, Thing

RNG = np.random.default_rng


def rows(*texts: str) -> np.ndarray:
    """One image a text, one token a digit."""
    return np.array([[int(mark) for mark in text] for text in texts])


def scene(*things: Thing) -> Scene:
    return Scene(things, "plain", "paint", 0)


# ---------------------------------------------------------------------------------------------- labels


def test_a_patch_shows_what_covers_a_quarter_of_it(monkeypatch):
    masks = np.zeros((2, 64, 64), bool)
    masks[0, :4, :4] = True  # 16 of 64 pixels of patch 0: just enough
    masks[0, :5, 8:11] = True  # 15 of patch 1: too little
    masks[0, :2, 16:24] = True  # 16 of patch 2 ...
    masks[1, 3:6, 16:24] = True  # ... and 24 of the other thing
    masks[1, 56:, 56:] = True
    monkeypatch.setattr(miniworld, "object_masks", lambda _: masks)
    expected = np.zeros(64, int)
    expected[[0, 2, 63]] = 1, 2, 2
    np.testing.assert_array_equal(subject.patch_labels(scene(), 8), expected)


def test_patches_need_not_be_whole_pixels(monkeypatch):
    masks = np.zeros((1, 64, 64), bool)
    masks[0, :, :10] = True  # a third of 64 / 3 is 7.1 pixels wide, a quarter 5.3
    monkeypatch.setattr(miniworld, "object_masks", lambda _: masks)
    assert subject.patch_labels(scene(), 3).tolist() == [1, 0, 0] * 3
    masks[0, :, :26] = True  # 4.67 of the second column's 21.33 pixels: 22%
    assert subject.patch_labels(scene(), 3).tolist() == [1, 0, 0] * 3
    masks[0, :, :27] = True  # 5.67: 27%
    assert subject.patch_labels(scene(), 3).tolist() == [1, 1, 0] * 3


def test_a_large_ball_fills_the_patches_around_its_centre():
    labels = subject.patch_labels(scene(Thing("ball", "red", "large", "plain", 32, 16, 11.0)), 8)
    grid = labels.reshape(8, 8)
    assert (grid[1:3, 3:5] == 1).all()
    assert (grid[4:] == 0).all()
    assert (grid[:, [0, 1, 6, 7]] == 0).all()


def test_labels_of_a_pool_are_those_of_its_scenes():
    found = subject.pool_labels("coco_val", 3, 8)
    for index in range(3):
        np.testing.assert_array_equal(
            found[index], subject.patch_labels(miniworld.pool("coco_val").scene(index), 8)
        )


def test_sides():
    assert [subject.grid_side(tokens) for tokens in (65, 257, 2, 64, 1, 0)] == [8, 16, 1, None, None, None]


# ---------------------------------------------------------------------------------------------- groups


def test_groups_leave_the_class_token_out():
    source = np.zeros((1, 3, 5))
    source[0, [0, 2, 1, 2, 0], range(5)] = 1  # the last patch went to the class token's output
    assert subject.groups_of(source).tolist() == [[2, 1, 2, 0]]


@pytest.mark.parametrize("side", [1, 3, 7, 8])
def test_a_grid_has_as_many_rectangles_as_asked_for(side):
    for number in range(1, side**2 + 1):
        grid = subject.grid_groups(side, number).reshape(side, side)
        assert sorted(np.unique(grid)) == list(range(number))
        for group in range(number):
            y, x = np.nonzero(grid == group)
            assert len(y) == (np.ptp(y) + 1) * (np.ptp(x) + 1)  # a full rectangle


def test_sixteen_groups_of_eight_by_eight_are_squares_of_four():
    grid = subject.grid_groups(8, 16).reshape(8, 8)
    assert (grid == np.arange(16).reshape(4, 4).repeat(2, 0).repeat(2, 1)).all()


def test_grids_follow_the_number_of_each_image():
    groups = np.stack([np.arange(64) % 16, np.arange(64) // 32])
    found = subject.grids_like(groups)
    assert [len(np.unique(row)) for row in found] == [16, 2]


def test_random_groups_keep_the_sizes_of_each_image():
    groups = rows("00012345", "00001111")
    found = subject.random_groups(groups, RNG(1))
    assert (np.sort(found, 1) == np.sort(groups, 1)).all()
    assert (found != groups).any()


# ---------------------------------------------------------------------------------------------- purity


def test_purity_by_hand():
    #             groups 000 11 22 3        3 is alone and not counted
    groups, labels = rows("00011223"), rows("00111022")
    found = subject.purity(groups, labels)
    assert found.tokens == pytest.approx((2 + 2 + 1) / 7)
    # tokens that show objects: one in group 0 (none of 2 like it), two in group 1 (like each other), one in
    # group 2 (with background), and the last one alone: not counted
    assert found.objects == pytest.approx((0 + 1 + 1 + 0) / 4)
    # pairs together: group 0 has the pair of background, group 1 its one, group 2 none -> 2; in groups
    # 3 + 1 + 1 = 5; in labels 3 (0) + 3 (1) + 1 (2) = 7, of 28
    assert found.ari == pytest.approx((2 - 5 * 7 / 28) / (6 - 5 * 7 / 28))


def test_two_of_three_tokens_of_an_object_have_one_companion_in_two():
    found = subject.purity(rows("000"), rows("011"))
    assert (found.tokens, found.objects) == (pytest.approx(2 / 3), pytest.approx(1 / 2))


def test_tokens_of_all_images_count_alike():
    found = subject.purity(rows("0011", "0000"), rows("1100", "1000"))
    assert found.tokens == pytest.approx((4 + 3) / 8)
    assert found.objects == pytest.approx((2 * 1 + 0) / 3)
    assert found.ari == pytest.approx((1 + 0) / 2)


def test_adjusted_rand_index_of_the_literature():
    # Hubert & Arabie's measure on the textbook example {0,0,1,1} against {0,0,1,2}: 0.5714...
    table = np.array([[2.0, 0, 0], [0, 1, 1]])
    assert subject.adjusted_rand_index(table) == pytest.approx(4 / 7)
    assert subject.adjusted_rand_index(np.array([[1.0, 1], [1, 1]])) == pytest.approx(-0.5)


def test_merging_nothing_is_not_rewarded():
    alone, labels = np.arange(8)[None], rows("00111022")
    found = subject.purity(alone, labels)
    assert math.isnan(found.tokens)
    assert math.isnan(found.objects)
    assert found.ari == 0


def test_merging_everything_is_rewarded_only_where_background_counts():
    labels = np.array([[1] * 4 + [0] * 60])
    found = subject.purity(np.zeros((1, 64), int), labels)
    assert found.tokens == pytest.approx(60 / 64)
    assert found.objects == pytest.approx(3 / 63)
    assert found.ari == 0


partitions = st.lists(st.integers(0, 4), min_size=2, max_size=16)


@given(partitions, st.permutations(range(5)))
def test_the_true_partition_is_perfect_whatever_its_numbers(labels, names):
    labels = np.array([labels])
    groups = np.array(names)[labels]
    found = subject.purity(groups, labels)
    assert found.ari == 1
    for value in (found.tokens, found.objects):
        assert math.isnan(value) or value == 1


@given(st.data())
def test_order_of_tokens_and_numbers_of_groups_do_not_matter(data):
    labels = np.array([data.draw(partitions)])
    groups = np.array([data.draw(st.lists(st.integers(0, 4), min_size=labels.size, max_size=labels.size))])
    order = data.draw(st.permutations(range(labels.size)))
    names = np.array(data.draw(st.permutations(range(5))))
    first = subject.purity(groups, labels)
    second = subject.purity(names[groups][:, order], labels[:, order])
    for name in ("tokens", "objects", "ari"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), nan_ok=True)
        assert math.isnan(getattr(first, name)) or -0.5 <= getattr(first, name) <= 1


def test_random_groups_score_what_chance_gives():
    generator = RNG(0)
    labels = np.tile([1] * 6 + [2] * 4 + [0] * 54, (60, 1))
    groups = generator.integers(0, 16, labels.shape)
    found = subject.chance(groups, labels)
    # any other token of the image is as likely a companion as the next one
    assert found.objects == pytest.approx((6 * 5 / 63 + 4 * 3 / 63) / 10, abs=0.006)
    assert found.ari == pytest.approx(0, abs=0.004)
    assert found == subject.chance(groups, labels)
    pairs = np.tile(np.arange(32).repeat(2), (60, 1))
    like = (54 * 53 + 6 * 5 + 4 * 3) / (64 * 63)  # that both of a pair show the same; else half is right
    assert subject.chance(pairs, labels).tokens == pytest.approx((1 + like) / 2, abs=0.004)


ENDS = ("", "_untrained", "_grid", "_untrained_grid")


def test_names_of_the_metrics_and_what_they_compare():
    labels = subject.pool_labels("coco_val", 12, 8)
    wild = RNG(0).integers(0, 16, labels.shape)
    found = subject.compare(labels, wild, labels)
    assert (found["purity"], found["purity_objects"], found["merge_ari"]) == (1, 1, 1)
    assert found["purity_untrained"] == subject.purity(wild, labels).tokens
    assert found["purity_untrained_random"] == subject.chance(wild, labels).tokens
    grid, merged = subject.grids_like(labels), subject.in_company(labels)
    assert found["purity_grid"] == subject.purity(grid, labels, merged).tokens
    stems = ("purity", "purity_objects")
    expected = {f"{stem}{end}" for stem in stems for end in ("_random", "_untrained_random")}
    expected |= {f"{stem}{end}" for stem in (*stems, "merge_ari") for end in ENDS}
    assert found.keys() == expected


def test_a_measure_without_tokens_is_left_out():
    alone = np.arange(64)[None]
    found = subject.compare(alone, alone, subject.pool_labels("coco_val", 1, 8))
    assert found.keys() == {"merge_ari", "merge_ari_untrained", "merge_ari_grid", "merge_ari_untrained_grid"}


def test_a_grid_is_measured_on_the_tokens_that_were_merged():
    """A merging that leaves all object patches alone is not purer than a grid that has to group them."""
    labels = np.zeros((1, 64), int)
    labels[0, [0, 1, 8, 9]] = 1
    groups = np.where(labels[0] > 0, 1 + np.arange(64), 0)[None]  # objects alone, the background together
    found = subject.compare(groups, groups, labels)
    assert found["purity"] == 1
    merged = subject.in_company(groups)
    assert merged.sum() == 60
    grid = subject.grids_like(groups)[0]
    majority = np.array([np.bincount(labels[0][grid == grid[i]]).argmax() for i in range(64)])
    alone = np.array([(grid == grid[i]).sum() < 2 for i in range(64)])
    counts = merged[0] & ~alone
    assert found["purity_grid"] == (majority == labels[0])[counts].mean()
    assert "purity_objects_grid" not in found  # none of the merged tokens shows an object
