"""Networks: the Siamese network, and any torch module cut at one of its layers."""
