"""The farm: what turns one render into many on a Ray cluster. The only package that imports ray."""
