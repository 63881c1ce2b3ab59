//! Who may come in: rules over the name in the source's certificate, as QEMU's `authz-simple` and `authz-list` have them.

/// What becomes of who matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// May come in.
    Allow,
    /// Has to stay outside.
    Deny,
}

/// How a rule's text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The whole name, letter by letter.
    Exact,
    /// `*` stands for any text, `?` for any one character.
    Glob,
}

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The name, or the pattern.
    pub text: String,
    /// What becomes of it.
    pub policy: Policy,
    /// How the text is meant.
    pub format: Format,
}

/// The list: the first rule that matches decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authz {
    /// In their order.
    pub rules: Vec<Rule>,
    /// For whom no rule matches.
    pub otherwise: Policy,
}

impl Authz {
    /// May this one come in?
    pub fn allows(&self, name: &str) -> bool {
        let rule = self.rules.iter().find(|rule| match rule.format {
            Format::Exact => rule.text == name,
            Format::Glob => matches(&rule.text, name),
        });
        rule.map_or(self.otherwise, |rule| rule.policy) == Policy::Allow
    }
}

/// In time of the product of the lengths at most: the name is the peer's.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut here) = (0, 0);
    // Where the last star stood, and what it has swallowed so far.
    let mut star = None;
    while here < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(one) if *one == '?' || *one == text[here] => {
                at += 1;
                here += 1;
            }
            _ => match star {
                Some((position, swallowed)) => {
                    at = position + 1;
                    here = swallowed + 1;
                    star = Some((position, here));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|one| *one == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str, policy: Policy, format: Format) -> Rule {
        Rule { text: text.into(), policy, format }
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("CN=*,O=here", "CN=a,O=b,O=here", true),
            ("CN=*,O=here", "CN=a,O=here,C=GB", false),
            ("CN=?", "CN=ä", true),
            ("CN=?", "CN=", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("CN=a", "CN=ab", false),
            ("CN=[ab]", "CN=a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_hostile_name_costs_no_more_than_its_length() {
        assert!(!matches(&"*a".repeat(200), &format!("{}b", "a".repeat(2000))));
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = vec![
            rule("CN=evil", Policy::Deny, Format::Exact),
            rule("CN=*", Policy::Allow, Format::Glob),
            rule("O=*", Policy::Allow, Format::Exact),
        ];
        let mut authz = Authz { rules, otherwise: Policy::Deny };
        for (name, allowed) in [("CN=evil", false), ("CN=good", true), ("O=good", false), ("O=*", true), ("", false)] {
            assert_eq!(authz.allows(name), allowed, "{name}");
        }
        authz.otherwise = Policy::Allow;
        assert!(authz.allows("") && !authz.allows("CN=evil"));
    }
}
