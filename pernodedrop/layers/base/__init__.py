"""What layers stand on. No regularizer is here; each is a file of `weight` or `activation` beside this folder.

Read `noisy` first, the key, the rate and the draw of every layer. Then `weight_noise`, wrappers of a layer that has a
kernel (`around`), and for the layer inside and its product `inner`, `contraction` and `convolution`. Then
`activation_noise`, layers that stand between others, with `shaped_noise` and `spatial_noise`. `sources` says which
layers of a model make noise, `module` what torch makes of a layer.
"""
