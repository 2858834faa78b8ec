-- JSON Schema, as far as calls use it: whether a value fits one. What a
-- definition gives may have these keywords:
--
--   type enum const
--   properties required additionalProperties
--   items minItems maxItems
--   minLength maxLength minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
--   anyOf oneOf allOf not $ref (to #/$defs/name or #/definitions/name)
--   title description default examples format $schema $id $comment, which say nothing of a value
--
-- A schema that others gave (the server of a tool) may have more: it is not
-- looked at.

-- Why a schema cannot be used; null: it can.
CREATE FUNCTION orchestrator._schema_refusal(schema jsonb, place text DEFAULT 'schema') RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_known constant text[] := '{type,enum,const,properties,required,additionalProperties,items,minItems,maxItems,minLength,maxLength,minimum,maximum,exclusiveMinimum,exclusiveMaximum,multipleOf,anyOf,oneOf,allOf,not,$ref,$defs,definitions,title,description,default,examples,format,$schema,$id,$comment}';
  v_key   text;
  v_found text;
BEGIN
  IF jsonb_typeof($1) = 'boolean' THEN
    RETURN NULL;
  ELSIF jsonb_typeof($1) IS DISTINCT FROM 'object' THEN
    RETURN format('%s is not an object', $2);
  END IF;
  SELECT k INTO v_key FROM jsonb_object_keys($1) k WHERE k <> ALL (v_known) ORDER BY k LIMIT 1;
  IF v_key IS NOT NULL THEN
    RETURN format('%s has keyword "%s", which is not known', $2, v_key);
  END IF;
  FOREACH v_key IN ARRAY '{items,additionalProperties,not}'::text[] LOOP
    v_found := coalesce(v_found, CASE WHEN $1 ? v_key THEN orchestrator._schema_refusal($1 -> v_key, $2 || '.' || v_key) END);
  END LOOP;
  FOREACH v_key IN ARRAY '{properties,$defs,definitions}'::text[] LOOP
    IF jsonb_typeof($1 -> v_key) <> 'object' THEN
      RETURN format('%s.%s is not an object', $2, v_key);
    END IF;
    v_found := coalesce(v_found, (SELECT min(orchestrator._schema_refusal(e.value, format('%s.%s.%s', $2, v_key, e.key)))
                                  FROM jsonb_each(coalesce($1 -> v_key, '{}')) e));
  END LOOP;
  FOREACH v_key IN ARRAY '{anyOf,oneOf,allOf}'::text[] LOOP
    IF jsonb_typeof($1 -> v_key) <> 'array' THEN
      RETURN format('%s.%s is not an array', $2, v_key);
    END IF;
    v_found := coalesce(v_found, (SELECT min(orchestrator._schema_refusal(e, $2 || '.' || v_key)) FROM jsonb_array_elements(coalesce($1 -> v_key, '[]')) e));
  END LOOP;
  RETURN v_found;
END
$$;

-- Where a value does not fit a schema, and why; null: it does. root: the schema
-- that references are about.
CREATE FUNCTION orchestrator._schema_error(value jsonb, schema jsonb, root jsonb DEFAULT NULL, place text DEFAULT '$', depth int DEFAULT 0) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_root jsonb := coalesce($3, $2);
BEGIN
  IF $5 > 64 THEN
    RETURN format('%s is nested too deep', $4);
  ELSIF jsonb_typeof($2) = 'boolean' THEN
    RETURN CASE WHEN $2 = 'false' THEN format('%s must not be there', $4) END;
  ELSIF $2 ? '$ref' THEN
    RETURN orchestrator._schema_error($1, coalesce(v_root #> string_to_array(ltrim($2 ->> '$ref', '#/'), '/'), 'false'), v_root, $4, $5 + 1);
  END IF;
  RETURN coalesce(orchestrator._type_error($1, $2, $4), orchestrator._scalar_error($1, $2, $4),
                  CASE jsonb_typeof($1) WHEN 'object' THEN orchestrator._object_error($1, $2, v_root, $4, $5)
                                        WHEN 'array' THEN orchestrator._array_error($1, $2, v_root, $4, $5) END,
                  orchestrator._choice_error($1, $2, v_root, $4, $5));
END
$$;

CREATE FUNCTION orchestrator._type_error(value jsonb, schema jsonb, place text) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_types text[] := CASE jsonb_typeof($2 -> 'type') WHEN 'string' THEN ARRAY[$2 ->> 'type']
                                                    WHEN 'array' THEN ARRAY(SELECT jsonb_array_elements_text($2 -> 'type')) END;
  v_is    text := jsonb_typeof($1);
BEGIN
  IF v_is <> ALL (v_types) AND NOT (v_is = 'number' AND 'integer' = ANY (v_types) AND ($1 #>> '{}')::numeric % 1 = 0) THEN
    RETURN format('%s is %s, not %s', $3, v_is, array_to_string(v_types, ' or '));
  ELSIF $2 ? 'const' AND $1 <> $2 -> 'const' THEN
    RETURN format('%s is not %s', $3, $2 -> 'const');
  ELSIF $2 ? 'enum' AND NOT EXISTS (SELECT FROM jsonb_array_elements($2 -> 'enum') e WHERE e = $1) THEN
    RETURN format('%s is none of %s', $3, $2 -> 'enum');
  END IF;
  RETURN NULL;
END
$$;

-- Bounds of strings and numbers.
CREATE FUNCTION orchestrator._scalar_error(value jsonb, schema jsonb, place text) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_length int := CASE jsonb_typeof($1) WHEN 'string' THEN length($1 #>> '{}') END;
  v_number numeric := CASE jsonb_typeof($1) WHEN 'number' THEN ($1 #>> '{}')::numeric END;
BEGIN
  RETURN CASE
    WHEN v_length < ($2 ->> 'minLength')::numeric THEN format('%s is shorter than %s characters', $3, $2 ->> 'minLength')
    WHEN v_length > ($2 ->> 'maxLength')::numeric THEN format('%s is longer than %s characters', $3, $2 ->> 'maxLength')
    WHEN v_number < ($2 ->> 'minimum')::numeric THEN format('%s is less than %s', $3, $2 ->> 'minimum')
    WHEN v_number > ($2 ->> 'maximum')::numeric THEN format('%s is more than %s', $3, $2 ->> 'maximum')
    WHEN v_number <= ($2 ->> 'exclusiveMinimum')::numeric THEN format('%s is not more than %s', $3, $2 ->> 'exclusiveMinimum')
    WHEN v_number >= ($2 ->> 'exclusiveMaximum')::numeric THEN format('%s is not less than %s', $3, $2 ->> 'exclusiveMaximum')
    WHEN v_number % nullif(($2 ->> 'multipleOf')::numeric, 0) <> 0 THEN format('%s is no multiple of %s', $3, $2 ->> 'multipleOf')
  END;
END
$$;

CREATE FUNCTION orchestrator._object_error(value jsonb, schema jsonb, root jsonb, place text, depth int) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_properties jsonb := coalesce($2 -> 'properties', '{}');
  v_missing    text;
BEGIN
  SELECT k INTO v_missing FROM jsonb_array_elements_text(coalesce($2 -> 'required', '[]')) WITH ORDINALITY r(k, n) WHERE NOT $1 ? k ORDER BY n LIMIT 1;
  IF v_missing IS NOT NULL THEN
    RETURN format('%s has no "%s"', $4, v_missing);
  END IF;
  RETURN (SELECT x.error FROM jsonb_each($1) e
          CROSS JOIN LATERAL (SELECT CASE
            WHEN v_properties ? e.key THEN orchestrator._schema_error(e.value, v_properties -> e.key, $3, $4 || '.' || e.key, $5 + 1)
            WHEN $2 -> 'additionalProperties' = 'false' THEN format('%s has "%s", which is not asked for', $4, left(e.key, 100))
            WHEN $2 ? 'additionalProperties' THEN orchestrator._schema_error(e.value, $2 -> 'additionalProperties', $3, $4 || '.' || left(e.key, 100), $5 + 1)
            END) x(error)
          WHERE x.error IS NOT NULL ORDER BY e.key LIMIT 1);
END
$$;

CREATE FUNCTION orchestrator._array_error(value jsonb, schema jsonb, root jsonb, place text, depth int) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_n int := jsonb_array_length($1);
BEGIN
  IF v_n < ($2 ->> 'minItems')::numeric THEN
    RETURN format('%s has fewer than %s items', $4, $2 ->> 'minItems');
  ELSIF v_n > ($2 ->> 'maxItems')::numeric THEN
    RETURN format('%s has more than %s items', $4, $2 ->> 'maxItems');
  ELSIF jsonb_typeof($2 -> 'items') IS DISTINCT FROM 'object' THEN
    RETURN NULL;
  END IF;
  RETURN (SELECT x.error FROM jsonb_array_elements($1) WITH ORDINALITY e(value, n)
          CROSS JOIN LATERAL (SELECT orchestrator._schema_error(e.value, $2 -> 'items', $3, format('%s[%s]', $4, e.n - 1), $5 + 1)) x(error)
          WHERE x.error IS NOT NULL ORDER BY e.n LIMIT 1);
END
$$;

CREATE FUNCTION orchestrator._choice_error(value jsonb, schema jsonb, root jsonb, place text, depth int) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_key    text;
  v_fit    int;
  v_errors text[];
BEGIN
  FOREACH v_key IN ARRAY '{allOf,anyOf,oneOf}'::text[] LOOP
    CONTINUE WHEN NOT $2 ? v_key;
    SELECT count(*) FILTER (WHERE x.error IS NULL), array_agg(x.error) FILTER (WHERE x.error IS NOT NULL) INTO v_fit, v_errors
      FROM jsonb_array_elements($2 -> v_key) e CROSS JOIN LATERAL (SELECT orchestrator._schema_error($1, e, $3, $4, $5 + 1)) x(error);
    IF v_key = 'allOf' AND v_errors IS NOT NULL OR v_key <> 'allOf' AND v_fit = 0 THEN
      RETURN v_errors[1];
    ELSIF v_key = 'oneOf' AND v_fit > 1 THEN
      RETURN format('%s fits %s of oneOf', $4, v_fit);
    END IF;
  END LOOP;
  IF $2 ? 'not' AND orchestrator._schema_error($1, $2 -> 'not', $3, $4, $5 + 1) IS NULL THEN
    RETURN format('%s is what it must not be', $4);
  END IF;
  RETURN NULL;
END
$$;
