"""Parameter trees as programs hold them."""


def nested(named):
    """Return a tree of an array's dotted names."""
    tree = {}
    for name, array in named.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = array
    return tree
