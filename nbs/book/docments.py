"""For griffe: the comment beside an argument, a result or a field documents it; its source is a cell of a notebook."""
import ast
import io
import re
import tokenize
from functools import lru_cache

import griffe


@lru_cache
def comments(path):
    "Line of a file -> the comment at its end."
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {token.start[0]: token.string.lstrip("#-> ") for token in tokens if token.type == tokenize.COMMENT}


def source(thing):
    "A link from a page of the API to the cell that a function or class was exported from."
    if not thing.parent.is_module: return ""
    cells = [re.search(r"nbs/(\S+)\.ipynb #(\w+)", text) for line, text in comments(thing.filepath).items()
             if line < thing.lineno]
    return "".join(f" [source](../{cell[1]}.md#{cell[2]})" for cell in [*filter(None, cells)][-1:])


def document(thing, agent, *parts):
    "Give a thing a docstring, or another one."
    thing.docstring = griffe.Docstring("\n\n".join(filter(None, parts)), parent=thing, parser=agent.docstring_parser,
                                       parser_options=agent.docstring_options)


class Docments(griffe.Extension):
    def on_function_instance(self, *, node, func, agent, **_):
        "Comments of arguments that have lines of their own, and of the line that ends the signature."
        beside, a = comments(func.filepath), node.args
        args = [arg for arg in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if arg]
        args = [arg for arg in args if arg.lineno > node.lineno]
        end = max([node.lineno, *(arg.end_lineno for arg in args)])
        told = [f"    {arg.arg}: {beside[arg.lineno]}" for arg in args if arg.lineno in beside]
        result = [beside[line] for line in range(end + 1, node.body[0].lineno) if line in beside]
        kind = f"`{func.returns}`: " if func.returns else ""
        document(func, agent, (func.docstring.value if func.docstring else "") + source(func),
                 "\n".join(["Args:", *told]) if told else "", f"**Returns:** {kind}{result[0]}" if result else "")

    def on_class_instance(self, *, cls, agent, **_):
        document(cls, agent, (cls.docstring.value if cls.docstring else "") + source(cls))

    def on_attribute_instance(self, *, node, attr, agent, **_):
        "A comment beside a field, or the default and the help of a `switch`."
        told, value = comments(attr.filepath).get(node.lineno), getattr(node, "value", None)
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "switch":
            texts = [part.value for part in ast.walk(value.args[1]) if isinstance(part, ast.Constant)]
            attr.value, told = ast.unparse(value.args[0]), "".join(texts)
        if told: document(attr, agent, told)
