"""Small critics in the manner of published ones, each rewritten from its paper, a file for each family.

Every network has the operations of its model, in the order and the notation that public code uses, with a few channels
and odd sizes. `CRITICS` is the table.
"""

from tests.critics import classics, patches, resnets, smooth, styles, transformers, waves

FAMILIES = (classics, styles, resnets, patches, transformers, waves, smooth)
CRITICS = {name: critic for family in FAMILIES for name, critic in family.CRITICS.items()}
assert len(CRITICS) == sum(len(family.CRITICS) for family in FAMILIES), "two critics of one name"
