"Every registered method in every situation, and every pair of them; the table is in `conformance.py`"
import pytest
from conformance import *

results = Path(__file__).parent.parent/'nbs'/'results'/'conformance.csv'


@pytest.mark.parametrize('name', entries)
def test_what_is_said_of_a_method_fits_the_suite(name):
    entry = entries[name]
    assert type(Row(name, name, entry, entry.make).make()) is methods[name]
    assert entry.columns or not overrides(methods[name], 'loss_term'), 'a term without a column in the table'
    assert entry.neutral, 'no way to make it do nothing; give neutral= where it is registered, or say why there is none'
    pairs = {f'beside {other}' for other in entries if other!=name}
    assert (entry.refused.keys() | entry.without.keys()) <= every_cell.keys() | pairs, 'a cell that there is not'


@pytest.mark.parametrize('row,name', [pytest.param(row, name, id=f'{row.name}: {name}') for row,name in asked(cells)])
def test_cell(row, name): check(row, name)


@pytest.mark.parametrize('a,b', combinations(entries, 2))
def test_pair(a, b): check_pair(a, b)


def test_the_committed_table_is_of_these_methods_and_cells():
    "Made again by `python tests/conformance.py --csv nbs/results/conformance.csv`"
    found = {(o['method'], o['cell']): o['status'] for o in csv.DictReader(results.open())}
    expected = {(row.name, name): declared(row, name)[0] for row in rows() for name in cells}
    expected |= {(a, f'beside {b}'): 'refused' if refused_pair(a, b) else 'passed' for a,b in combinations(entries, 2)}
    assert found==expected


class Draws(SpatialScale):
    "Takes a number from torch's global generator"
    def before_batch(self):
        super().before_batch()
        torch.rand(1)

class Stays(SpatialScale):
    "Leaves its taps in the model"
    def end_epoch(self): pass
    def after_batch(self): pass

class Meddles(SpatialScale):
    "Changes a weight in an event that is not its own"
    def after_backward(self): self.learn.model[1][-1].bias.data.add_(1e-3)

class Thaws(SpatialScale):
    "Moves what is frozen"
    def after_step(self): next(self.learn.model.parameters()).data.add_(1e-3)

class Wakes(SpatialScale):
    "Runs the body once more in training mode, which moves its statistics"
    def before_batch(self):
        super().before_batch()
        if self.learn.training: self.learn.model[0].train()(self.learn.x)

class Searches(SpatialScale):
    "Does not put back what `lr_find` has drawn"
    def before_fit(self):
        super().before_fit()
        self._fit.snapshot = None

def harmless(*args): pass

class Packs(SpatialScale):
    "Leaves a hook of its own"
    def after_fit(self):
        super().after_fit()
        self.learn.model[0].register_forward_hook(harmless)

pretrained_failures = [(Thaws, 'pretrained: fine_tune'), (Thaws, 'pretrained: freeze_to(1), slice'),
                       (Thaws, 'pretrained: a body frozen whole'), (Thaws, 'pretrained: a rate for each group'),
                       (Draws, 'neutral: pretrained: one-cycle in slices'), (Stays, 'pretrained: fine_tune'),
                       (Thaws, 'neutral: pretrained: fine_tune'), (Wakes, 'pretrained: a body frozen whole'),
                       (Searches, 'pretrained: lr_find between two fits'),
                       (Packs, 'pretrained: fine_tune, then export')]

@pytest.mark.parametrize('cls,name', pretrained_failures + [
    (Draws, 'fit'),
    (Draws, 'neutral: fit'),
    (Draws, 'acts at its events and at no other'),
    (Stays, 'fit'),
    (Stays, 'exit: Ctrl-C'),
    (Draws, 'fp16 and scaler on CUDA'),
    (Meddles, 'neutral: bf16 and channels_last on CUDA'),
    (Meddles, 'an overflow skips the step on CUDA'),
    (Meddles, 'neutral: fit'),
    (Meddles, 'acts at its events and at no other'),
    (Inert, 'fit'),
])
def test_the_suite_can_fail(cls, name):
    "What misbehaves is found"
    entry = Entry(cls, {'full rate': partial(cls, retain=1.)}, acts_of(cls))
    with pytest.raises(AssertionError): check(Row('own', 'own', entry, cls), name)


def test_a_refusal_that_does_not_come_is_a_failure():
    row = first(rows())
    with pytest.raises(AssertionError, match='not refused'): expect(lambda: cells['fit'].test(row), 'a sentence')
