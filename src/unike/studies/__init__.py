"""The paper's studies (section 4.5: Table 4, Figures 4, 5, 7) and some beyond it; a study is a file."""
