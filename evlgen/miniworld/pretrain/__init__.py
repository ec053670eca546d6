"""Pre-training of the miniature's foundation models: its EVA-CLIP, CLIP, OPT, Vicuna and BERT.

``python sweeps/run.py foundation`` makes them from nothing (`evlgen.miniworld.pretrain.build`); the results
are shipped in ``evlgen/miniworld/weights/``.

``mini-vit`` learns from image-text pairs alone, as CLIP does: phrases of a description ("small striped
red boat at the top left") must find their image among those of the batch, and the image must prefer a phrase
to others that differ in one word (as in NegCLIP). A phrase is compared with every patch and scored by the
log-sum-exp over patches, so the model is never given the place of a thing or the patches that show it. The
class token is trained with whole captions in the usual contrastive way. The text tower is dropped afterwards.
``mini-clip``, whose plain patch embedding learns shapes far too slowly in this way (21% after 70,000 images),
learns to predict the features of ``mini-vit`` for each patch (feature distillation).

The language models learn from texts alone (`evlgen.miniworld.document`), and start from an induction circuit
(`evlgen.miniworld.pretrain.induction`): a model of this size takes far longer than an hour to find one by
itself, and without it never learns which noun goes with which colour. BERT, from which the connectors start
as the paper's do, learns from the same kind of texts by masked words.
"""
