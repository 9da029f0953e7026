//! The guide to writing an adapter shows what the guide's adapter is, and no more than compiles.

#[test]
fn every_block_of_the_guide_is_in_the_adapter() {
    let guide = include_str!("../../core/src/manual/adapter.md");
    let program = [include_str!("guide/adapter.rs"), include_str!("guide.rs")];
    let blocks: Vec<_> = guide
        .split("```rust,ignore\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(block, _)| block)
        .collect();
    assert!(blocks.len() > 5, "the guide shows nothing");
    for block in blocks {
        let is_there = program.iter().any(|file| file.contains(block));
        assert!(is_there, "the guide shows what is not there:\n{block}");
    }
}

#[test]
fn what_the_guide_names_is_there() {
    let guide = include_str!("../../core/src/manual/adapter.md");
    let cases = concat!(
        include_str!("../src/cases/adapter.rs"),
        include_str!("../src/cases/serve.rs"),
        include_str!("../src/cases/drain.rs"),
        include_str!("../src/cases/descriptors.rs"),
    );
    let named = guide.split(|c: char| !(c.is_alphanumeric() || "_:".contains(c)));
    for name in named.filter(|word| {
        ["adapter::", "serve::", "drain::", "descriptors::"]
            .iter()
            .any(|group| word.starts_with(group))
            && !word.starts_with("adapter::start_with")
    }) {
        assert!(cases.contains(&format!("\"{name}")), "there is no case `{name}`");
    }
}
