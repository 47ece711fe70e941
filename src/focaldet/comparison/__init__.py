"""The results table and Figure 2 of the paper on anyone's data: `focaldet compare`."""
