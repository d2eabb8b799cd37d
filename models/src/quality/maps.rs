//! Maps of classes or values, held against the truth place by place.

/// Why two maps cannot be held against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{answer} places of an answer and {truth} of the truth cannot be compared")]
pub struct QualityError {
    /// Places of the answer.
    pub answer: usize,
    /// Places of the truth.
    pub truth: usize,
}

fn check(answer: usize, truth: usize) -> Result<(), QualityError> {
    match answer == truth {
        true => Ok(()),
        false => Err(QualityError { answer, truth }),
    }
}

/// Mean intersection over union of maps of classes, over one map or many: the mean over the classes
/// that occur in answer or truth of places where both are the class, over places where either is.
///
/// ```
/// use isthmus_models::MeanIou;
/// let mut overlap = MeanIou::default();
/// overlap.add(&[0u8, 0, 1, 1], &[0u8, 1, 1, 255], Some(255))?;
/// assert_eq!(overlap.mean(), Some((1.0 / 2.0 + 1.0 / 2.0) / 2.0));
/// # Ok::<(), isthmus_models::QualityError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeanIou {
    /// By class: places where both are it, and where either is.
    classes: Vec<[u64; 2]>,
}

impl MeanIou {
    /// Adds a map. Places whose truth is `ignored` do not count. An error is of maps of different
    /// lengths.
    pub fn add<C: Copy + Into<u16>>(
        &mut self,
        answer: &[C],
        truth: &[C],
        ignored: Option<C>,
    ) -> Result<(), QualityError> {
        check(answer.len(), truth.len())?;
        let ignored: Option<u16> = ignored.map(Into::into);
        for (&answer, &truth) in answer.iter().zip(truth) {
            let (answer, truth): (u16, u16) = (answer.into(), truth.into());
            if Some(truth) == ignored {
                continue;
            }
            let classes = usize::from(answer.max(truth)) + 1;
            if self.classes.len() < classes {
                self.classes.resize(classes, [0; 2]);
            }
            let (answer, truth) = (usize::from(answer), usize::from(truth));
            self.classes[truth][1] += 1;
            match answer == truth {
                true => self.classes[truth][0] += 1,
                false => self.classes[answer][1] += 1,
            }
        }
        Ok(())
    }

    /// The mean, 0..=1; `None` where no place counted.
    pub fn mean(&self) -> Option<f64> {
        let classes = self.classes.iter().filter(|[_, either]| *either > 0);
        let shares: Vec<f64> =
            classes.map(|[both, either]| *both as f64 / *either as f64).collect();
        (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
    }
}

/// Share (0..=1) of places whose answer a and truth b are within a ratio: max(a / b, b / a) < `most`.
/// With `most` = 1.25 it is the δ₁ of depth maps (Eigen et al. 2014, arXiv 1406.2283). Places whose
/// truth is not above 0 and finite do not count, and without any other the share is `None`; an
/// answer that is neither is not within. An error is of maps of different lengths.
///
/// ```
/// let share = isthmus_models::within_ratio(&[1.0, 2.0, 9.0], &[1.1, 4.0, 0.0], 1.25);
/// assert_eq!(share, Ok(Some(0.5)));
/// ```
pub fn within_ratio(answer: &[f32], truth: &[f32], most: f32) -> Result<Option<f64>, QualityError> {
    check(answer.len(), truth.len())?;
    let counts = |value: f32| value > 0.0 && value.is_finite();
    let (mut within, mut all) = (0u64, 0u64);
    for (&answer, &truth) in answer.iter().zip(truth).filter(|(_, truth)| counts(**truth)) {
        all += 1;
        within += u64::from(counts(answer) && (answer / truth).max(truth / answer) < most);
    }
    Ok((all > 0).then(|| within as f64 / all as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_only_the_answer_has_count() {
        let mut overlap = MeanIou::default();
        assert_eq!(overlap.mean(), None);
        overlap.add(&[2u16, 2, 0, 0], &[0, 0, 0, 0], None).expect("four places");
        assert_eq!(overlap.mean(), Some((0.5 + 0.0) / 2.0));
        overlap.add(&[2u16, 2], &[2, 2], None).expect("two places");
        assert_eq!(overlap.mean(), Some((0.5 + 0.5) / 2.0));
        let error = overlap.add(&[0u16], &[], None).expect_err("different lengths");
        assert_eq!(error, QualityError { answer: 1, truth: 0 });
    }

    #[test]
    fn places_without_truth_do_not_count() {
        let mut overlap = MeanIou::default();
        overlap.add(&[1u8, 1], &[9, 9], Some(9)).expect("two places");
        assert_eq!(overlap.mean(), None);
        assert_eq!(within_ratio(&[1.0], &[f32::NAN], 1.25), Ok(None));
        assert_eq!(within_ratio(&[f32::NAN, -1.0, 1.25], &[1.0; 3], 1.25), Ok(Some(0.0)));
        assert!(within_ratio(&[1.0], &[], 1.25).is_err());
    }
}
