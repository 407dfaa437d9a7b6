"One run kept: learner, weights and recipe; a body to begin from; a report of rows that are there"
import numpy as np
import pytest
import torch
from fastai.learner import load_learner

import fastai_featreg.all # noqa: F401 - registers the methods
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.comparison.saved import body_weights, model_file, report_folder, train_and_save
from fastai_featreg.methods.guide import normalisation
from fastai_featreg.methods.teachers import images_of, open_teacher

tiny = dict(data='digits', arch='test_resnet', size=64, epochs=1, n_train=48, n_valid=20, bs=16)
words = [w for k,v in tiny.items() for w in (f'--{k.replace("_", "-")}', str(v))]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "The folder of a comparison with its models, and of a network trained alone"
    out = tmp_path_factory.mktemp('saved')
    compare(**tiny, methods='feature_mining', seeds=2, out=out/'all', save=True, say=lambda text: None, bars=False)
    assert main(['train', *words, '--method', 'feature_mining', '--seed', '1', '--out', str(out/'one')])==0
    return out

def test_each_run_keeps_its_weights(trained):
    path = trained/'all'/'results.csv'
    rows = read_results(path).to_dict('records')
    files = [model_file(path, row) for row in rows]
    assert len(set(files))==4 and all(f.exists() for f in files)
    assert sorted(files)==sorted((trained/'all'/'models').iterdir()), 'nothing else is left'
    assert {f.name.rpartition('-')[0] for f in files}=={'plain-0', 'plain-1', 'FeatureMining-0', 'FeatureMining-1'}

def test_trained_alone_is_the_run_of_the_comparison(trained):
    path = trained/'all'/'results.csv'
    df = read_results(path)
    row, = df[(df.method=='FeatureMining()') & (df.seed==1)].to_dict('records')
    alone, = read_results(trained/'one'/'results.csv').to_dict('records')
    for c in ('accuracy', 'valid_loss', 'train_loss', 'curve', 'method_id', 'data_id'): assert alone[c]==row[c], c
    one,other = [torch.load(f, weights_only=True) for f in (trained/'one'/'net.pth', model_file(path, row))]
    assert one.keys()==other.keys()
    for k in one: assert torch.equal(one[k], other[k]), k

def test_learner_and_recipe(trained):
    learn,weights = load_learner(trained/'one'/'learner.pkl'),torch.load(trained/'one'/'net.pth', weights_only=True)
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, weights[k]), k
    assert not any(type(cb).__module__.startswith('fastai_featreg') for cb in learn.cbs)
    recipe = (trained/'one'/'recipe.toml').read_text()
    for line in ('method = "FeatureMining()"', 'seed = 1', 'arch = "test_resnet"', 'pretrained = false', 'epochs = 1'):
        assert line in recipe.splitlines(), line
    stats = normalisation(learn.dls)
    for got,own in zip(images_of(trained/'one'/'net.pth'), stats): torch.testing.assert_close(got, own)

def test_a_teacher(trained):
    net = open_teacher(trained/'one'/'net.pth', 'test_resnet')
    learn = open_teacher(trained/'one'/'learner.pkl')
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): assert torch.equal(net.eval()(x), learn.model.eval()(x))

def test_runs_begin_with_a_body(trained, tmp_path, monkeypatch):
    import sys
    module,begun = sys.modules['fastai_featreg.comparison.runs'],[]
    def train(learn, *args):
        begun.append({k: v.clone() for k,v in learn.model.state_dict().items()})
        learn.fit(1, 0.)
    monkeypatch.setattr(module, 'train', train)
    given = tiny | dict(methods='plain', out=tmp_path, bars=False)
    lines,file = [],trained/'one'/'net.pth'
    df = compare(**given, seeds=2, weights=file, say=lines.append)
    for k,v in body_weights(file).items(): assert all(torch.equal(b[f'0.{k}'], v) for b in begun), k
    heads = [b[k] for b in begun for k in b if k.startswith('1.') and k.endswith('weight')]
    assert len(heads)==2 and not torch.equal(*heads), 'a classifier is drawn by its seed'
    assert set(df.weights.str.match(r'net\.pth#[0-9a-f]{12}$'))=={True}
    assert not [l for l in lines if 'recipe.toml' in l]
    # other weights, or none, are other runs
    compare(**given, seeds=1, say=lines.append)
    assert len(begun)==3 and sum('weights (net.pth#' in l for l in lines)==1
    compare(**given, seeds=2, weights=file, say=lines.append)
    assert len(begun)==3

def test_mistakes_are_sentences(trained, tmp_path, capsys):
    out = ['--out', str(tmp_path/'out')]
    assert main(['compare', *words, *out, '--weights', str(tmp_path/'none.pth')])==2
    assert main(['compare', *words, *out, '--arch', 'resnet20', '--weights', str(trained/'one'/'net.pth')])==2
    assert main(['compare', *words, *out, '--weights', str(trained/'one'/'learner.pkl')])==2
    assert main(['train', *words, *out, '--method', 'mixup,cutmix'])==2
    assert main(['train', *words, *out, '--methods', 'mixup'])==2
    assert main(['report', str(tmp_path/'nowhere')])==2
    errors = capsys.readouterr().err.splitlines()
    told = ['weights must be a file', 'does not fit this network', 'cannot be taken', 'method must be one method',
            'got --methods mixup; give --method', 'has no rows']
    assert len(errors)==6 and all(t in e for t,e in zip(told, errors)), errors
    for how in (dict(seed=-1), dict(jobs=2), dict(methods='mixup')):
        with pytest.raises(ValueError, match='must'): train_and_save(**tiny, out=tmp_path, **how)

def test_a_full_disk_costs_no_run(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    df = compare(**tiny, methods='plain', seeds=1, out=tmp_path, save=True, say=lambda text: None, bars=False)
    assert list(df.error)==[''] and 'weights of plain, seed 0 are not saved' in capsys.readouterr().err
    assert not list((tmp_path/'models').iterdir())

def test_report_of_rows_that_are_there(trained, tmp_path, capsys):
    lines = []
    whole = report_folder(trained/'all', say=lines.append)
    assert len(whole)==1 and len(whole[0])==4 and any('FeatureMining()' in l for l in lines)
    assert not any('Configuration' in l for l in lines)
    df = read_results(trained/'all'/'results.csv')
    other = df.assign(size='96', accuracy=df.accuracy/2)
    for d in (df, other): assert np.isfinite(d.accuracy).all()
    import pandas as pd
    pd.concat([df, other]).to_csv(tmp_path/'results.csv', index=False)
    assert main(['report', str(tmp_path)])==0
    said = capsys.readouterr().out
    assert 'Configuration 1 of 2: size 64' in said and 'Configuration 2 of 2: size 96' in said
    pictures = {f'{what}-{i}.png' for what in ('comparison', 'curves') for i in (1, 2)}
    assert {p.name for p in tmp_path.glob('*.png')}==pictures
    assert main(['report', str(tmp_path), '--only', 'size=96'])==0
    assert 'Configuration' not in capsys.readouterr().out and (tmp_path/'comparison.png').exists()
    assert main(['report', str(tmp_path), '--only', 'size=7'])==2
    assert "has size=7" in capsys.readouterr().err

def test_seeds_with_images_or_labels_of_their_own_are_one_configuration(tmp_path):
    "`data_id` is of a seed there: the report was one for each seed"
    from fastai_featreg.comparison.reproduce import rows_there
    for i,drawn in enumerate((dict(label_noise=.2), dict(redraw=True))):
        out = tmp_path/str(i)/'block'
        df = compare(**tiny | drawn, methods='plain', seeds=3, out=out, say=lambda text: None, bars=False)
        assert df['data_id'].nunique()==3
        whole = report_folder(out, say=lambda text: None)
        assert [sorted(t['seed']) for t in whole]==[[0, 1, 2]]
        looked = rows_there(dict(block='block', arms=dict(plain='plain')), tmp_path/str(i))
        assert sorted(looked['seed'])==[0, 1, 2] and set(looked['arm'])=={'plain'}

def test_report_by_the_name_of_a_protocol(tmp_path, capsys):
    given = tiny | dict(methods='plain', seeds=1, out=tmp_path, say=lambda text: None, bars=False)
    compare(**given)
    compare(**given, protocol='fm_cifar')
    capsys.readouterr()
    assert main(['report', str(tmp_path)])==0 and 'protocol fm_cifar' in capsys.readouterr().out
    said = []
    only, = report_folder(tmp_path, 'protocol=fm_cifar', say=said.append)
    assert list(only['protocol'])==['fm_cifar']

def test_only_the_images_of_its_seed_are_opened(tmp_path, monkeypatch):
    from fastai_featreg.comparison import jobs, start
    opened,load = [],start.load_data
    def load_data(*args, **given):
        opened.append(given.get('run_seed'))
        return load(*args, **given)
    monkeypatch.setattr(start, 'load_data', load_data)
    row = train_and_save(**tiny, seed=20, out=tmp_path, label_noise=.2, say=lambda text: None, bars=False)
    assert opened==[20] and row['seed']==20 and row['seeds_asked']==1
    # the same labels as the run of that seed in a comparison
    config = start.seed_configs(dict(data_id=''), start.open_data('digits', tiny | dict(label_noise=.2),
                                start.Protocol()), [0, 19, 20])
    assert row['data_id']==config[20]['data_id']!=config[19]['data_id']
    assert jobs.my_part()==jobs.Part()

def test_one_run_is_trained_in_this_process(tmp_path, monkeypatch):
    from fastai_featreg.comparison import jobs, training
    monkeypatch.setattr(jobs, 'n_places', lambda: 8)
    def side(*args): raise AssertionError('it has started processes')
    def one(todo, *args): raise KeyboardInterrupt
    monkeypatch.setattr(training, 'train_beside', side)
    monkeypatch.setattr(training, 'train_all', one)
    # the digits at full length, for which a comparison takes several
    with pytest.raises(KeyboardInterrupt): train_and_save(out=tmp_path, say=lambda text: None, bars=False)
    assert main(['train', '--out', str(tmp_path)])==130
    with jobs.as_part(jobs.Part(only=0)), pytest.raises(ValueError, match='jobs must be 1 where one run'):
        training.train_missing(2, {}, [(0, 'plain')], None)

def test_the_protocol_beside_a_network_trains_it_again(trained, tmp_path):
    for name,given in dict(usual={}, paper=dict(protocol='fm_cifar', wd=1e-3), warm=dict(warmup=.5, opt='sgd')).items():
        first,again = tmp_path/name/'first',tmp_path/name/'again'
        row = train_and_save(**tiny | given, out=first, say=lambda text: None, bars=False)
        images = {k: tiny[k] for k in ('data', 'n_train', 'n_valid')}
        same = train_and_save(**images, protocol=first/'protocol.toml', out=again, say=lambda text: None, bars=False)
        for k in ('accuracy', 'valid_loss', 'curve', 'recipe', 'arch', 'head', 'size', 'bs', 'lr', 'epochs'):
            assert same[k]==row[k], (name, k)
        assert len(read_results(again/'results.csv'))==1
        one,other = [torch.load(f/'net.pth', weights_only=True) for f in (first, again)]
        for k in one: assert torch.equal(one[k], other[k]), k


def test_a_trained_network_is_not_replaced(tmp_path):
    (tmp_path/'net.pth').write_bytes(b'of another day')
    with pytest.raises(ValueError, match='out must be a folder without a trained network.*choose another'):
        train_and_save(**tiny, out=tmp_path)
    assert (tmp_path/'net.pth').read_bytes()==b'of another day'
