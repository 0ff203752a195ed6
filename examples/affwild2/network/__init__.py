"""The network: backbones, batch normalisation, and everything between features and output."""
