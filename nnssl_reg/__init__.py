"""nnssl_reg: self-configuring deformable registration with features learned from unlabelled scans."""
