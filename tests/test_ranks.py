"Two processes, several callbacks: heads and model end equal on both. Each method alone is in the conformance suite"
import pytest, torch
import two_ranks


@pytest.mark.parametrize('name', ['start by accuracy', 'gaps and MixUp', 'teacher and MixUp'])
def test_two_ranks_end_equal(name):
    (model0,heads0),(model1,heads1) = two_ranks.results(name)
    assert torch.equal(heads0, heads1), 'the heads differ between the ranks'
    assert torch.equal(model0, model1), 'the models differ between the ranks'
