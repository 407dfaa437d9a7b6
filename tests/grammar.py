"The grammar of a sentence about wrong input, and the sentences of a module, read from its syntax tree"
import ast
import re
from itertools import product

known = re.compile(r'\bmust\b.*, got \S|; \S', re.DOTALL)
unknown = '{}' # what stands for a value


def in_grammar(text: str) -> bool:
    """`name must be ..., got V` or `what is wrong; remedy`, without a full stop at the end

    Behind `must`, which says what to give, the remedy may be left out."""
    return bool(known.search(text)) and not text.rstrip().endswith('.')


class Sentences:
    "All texts that the errors of some modules may have, `{}` in the place of values"
    def __init__(self, sources: dict): # name of a module -> its source
        self.trees = {name: ast.parse(source) for name,source in sources.items()}
        self.makers = {} # name of a function -> what it returns
        for tree in self.trees.values():
            for f in ast.walk(tree):
                if isinstance(f, ast.FunctionDef): self.makers.setdefault(f.name, []).extend(returned(f))

    def of(self, module: str):
        "(function, line, text) of every ValueError and TypeError that is made"
        tree = self.trees[module]
        shared = assigned(tree.body)
        for f in tree.body:
            for name,node in functions(f):
                local = shared | assigned(ast.walk(node))
                for call in errors(node):
                    found = self.texts(call.args[0], local) if call.args else ['']
                    yield from ((f'{module}.{name}', call.lineno, text) for text in found)

    def texts(self, node, local: dict, depth: int=4) -> list:
        "What an expression may be, names and the calls of our own functions looked up"
        if isinstance(node, ast.Constant) and isinstance(node.value, str): return [node.value]
        if not depth: return [unknown]
        def all_of(nodes): return [t for n in nodes for t in self.texts(n, local, depth-1)] or [unknown]
        def joined(nodes): return [''.join(o) for o in product(*[self.texts(n, local, depth) for n in nodes])]
        match node:
            case ast.JoinedStr(): return joined(node.values)
            case ast.BinOp(op=ast.Add()): return joined([node.left, node.right])
            case ast.FormattedValue(conversion=-1): return all_of([node.value])
            case ast.IfExp(): return all_of([node.body, node.orelse])
            case ast.Name(): return all_of(local.get(node.id, []))
            case ast.Call(func=ast.Name()): return all_of(self.makers.get(node.func.id, []))
            case ast.Attribute(attr='doubt'): return all_of(self.makers['_doubt'])
        return [unknown]


def functions(node, prefix=''):
    "(name, function) of a function, or of the methods of a class"
    if isinstance(node, ast.FunctionDef): yield prefix + node.name,node
    if isinstance(node, ast.ClassDef):
        for f in node.body: yield from functions(f, f'{node.name}.')

def errors(node) -> list:
    "Calls that make an error about wrong input"
    return [n for n in ast.walk(node) if isinstance(n, ast.Call)
            and isinstance(n.func, ast.Name) and n.func.id in ('ValueError', 'TypeError')]

def returned(f: ast.FunctionDef) -> list:
    "What a function returns; '' says that there is nothing to say"
    values = [n.value for n in ast.walk(f) if isinstance(n, ast.Return) and n.value is not None]
    return [v for v in values if not (isinstance(v, ast.Constant) and v.value=='')]

def assigned(nodes) -> dict:
    "Name -> what it may be"
    found = {}
    for n in nodes:
        if not isinstance(n, ast.Assign): continue
        for target in n.targets:
            pairs = [(target, n.value)]
            if isinstance(target, ast.Tuple) and isinstance(n.value, ast.Tuple): pairs = zip(target.elts, n.value.elts)
            for t,v in pairs:
                if isinstance(t, ast.Name): found.setdefault(t.id, []).append(v)
    return found
