"""Where a picture comes from: what its file says of it, in the ways that other programs read, and whether that holds.

    from kotoe.provenance.encode import encode               # a Picture as a file: watermark, texts, signature
    from kotoe.provenance.infotext import infotext, read_settings
    from kotoe.provenance.watermark import detect, embed
    from kotoe.provenance.verify import verify

A file is made in one order: pixels, watermark, texts, signature; each holds for what came before. See
docs/provenance.md.
"""
