import torch

from textdiff.backbones.time_features import level_of


def test_levels_run_evenly_through_the_range_of_gamma_and_stop_at_its_ends() -> None:
    gamma = torch.tensor([[-torch.inf, -15.0, -7.5], [0.0, 15.0, torch.inf]], dtype=torch.float64)
    assert level_of(gamma).tolist() == [[0.0, 0.0, 0.25], [0.5, 1.0, 1.0]]
