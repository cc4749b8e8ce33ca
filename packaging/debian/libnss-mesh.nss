hosts after=files mesh
