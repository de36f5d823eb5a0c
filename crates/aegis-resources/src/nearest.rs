//! The word that was probably meant, for messages about one that is not known.

/// The known word that is nearest to `word`, if one is near: a third of its letters may differ,
/// and at least one.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = word.to_lowercase();
    let near = known.into_iter().filter(|candidate| *candidate != word).filter_map(|candidate| {
        let distance = strsim::osa_distance(&wanted, &candidate.to_lowercase());
        let most = (wanted.chars().count().min(candidate.chars().count()) / 3).max(1);
        (distance <= most).then_some((distance, candidate))
    });
    near.min().map(|(_, candidate)| candidate)
}

/// "; did you mean `…`?", or nothing.
#[must_use]
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_near_is_named() {
        let known = ["allow", "require_approval", "deny"];
        assert_eq!(nearest("denny", known), Some("deny"));
        assert_eq!(nearest("Allow", known), Some("allow"));
        assert_eq!(nearest("requires_aproval", known), Some("require_approval"));
        assert_eq!(nearest("permit", known), None);
        assert_eq!(nearest("deny", known), None, "a known word is not misspelt");
        assert_eq!(did_you_mean("denny", known), "; did you mean `deny`?");
        assert_eq!(did_you_mean("x", known), "");
    }
}
