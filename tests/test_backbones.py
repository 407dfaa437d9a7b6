"Every method on a sample of networks, as the committed table says; marked slow: on all of them"
import pandas as pd
import pytest
import backbones
from backbones import ARCHS, SAMPLE, find_archs, root, run_cell, own_methods
from fastai_featreg import core, taps

table = pd.read_csv(root/'nbs/results/backbones.csv', keep_default_na=False).set_index(['arch', 'method'])
cells = [pytest.param(a, m, id=f'{a.label}-{m}', marks=[] if a.label in SAMPLE else pytest.mark.slow)
         for a in ARCHS for m in own_methods()]


@pytest.mark.parametrize('arch, method', cells)
def test_cell(arch, method):
    row = run_cell(arch, method)
    if (arch.label, method) not in table.index:
        assert row['status']!='fails', row['why']
        return
    known = table.loc[(arch.label, method)]
    assert row['status']==known['status'], row['why']
    assert row['map']==known['map']


def expected(): return {(a.label, m) for a in ARCHS for m in own_methods()}


def test_rows_are_of_networks_and_methods_that_there_are():
    assert table.index.is_unique and set(table.index) <= expected()
    assert not (table.status=='fails').any()
    assert len(ARCHS)>=40
    if n := len(expected() - set(table.index)): print(f'missing: {n} cells; python benchmarks/backbones.py makes them')


@pytest.mark.slow
def test_the_table_is_complete(): assert set(table.index)==expected()


def test_a_term_that_does_nothing_is_seen(monkeypatch):
    "Otherwise the tests above could not fail"
    arch, = find_archs(['resnet20'])
    status = lambda method: (r := run_cell(arch, method))['status'] + ': ' + r['why']
    monkeypatch.setattr(backbones.featreg.FeatureMining, 'loss_term', lambda self, maps: None)
    assert 'a parameter of a head got no gradient' in status('feature_mining')
    monkeypatch.setattr(backbones.featreg.SelectScale, 'drop', lambda self, f, strength: f.clone())
    assert 'the weights are those of plain training' in status('select_scale')
    monkeypatch.setattr(backbones.featreg.NegativeCAM, 'loss_term',
                        lambda self, maps: maps.popitem()[1].sum()*float('nan'))
    assert 'the loss is not finite' in status('negative_cam')
    def stumble(self, maps): raise ValueError('not of this library')
    monkeypatch.setattr(backbones.featreg.CCM, 'loss_term', stumble)
    assert status('ccm').startswith('fails: ValueError: ')
    monkeypatch.setattr(core, 'remove_taps', lambda *args: 0)
    monkeypatch.setattr(taps.Taps, 'unhook', lambda self: None)
    assert 'a tap is left' in status('cam_loss')
